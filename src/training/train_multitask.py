"""The guide's name for `chitransfer finetune`."""

from chitransfer.cli import main_verb

if __name__ == "__main__":
    main_verb("finetune")
