"""The command line: ``prefloop COMMAND``, or ``python -m prefloop COMMAND``."""

from flows.__main__ import main

if __name__ == "__main__":
    main()
