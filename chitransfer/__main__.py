"""`python -m chitransfer` is the command line."""

from chitransfer.cli import main

if __name__ == "__main__":
    main()
