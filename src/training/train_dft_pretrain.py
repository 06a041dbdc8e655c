"""The guide's name for `chitransfer pretrain`."""

from chitransfer.cli import main_verb

if __name__ == "__main__":
    main_verb("pretrain")
