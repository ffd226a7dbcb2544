"""Random and hostile input to everything that reads what people wrote: configs, data, and a run folder's small files."""
