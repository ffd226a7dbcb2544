"""Random and hostile input to whatever reads what people wrote: configs, data, and small files of a run folder."""
