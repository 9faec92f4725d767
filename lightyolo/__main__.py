"""Run the command `lightyolo`: `python -m lightyolo train`."""

from lightyolo.command import main

if __name__ == "__main__":
    main()
