"""Run a stage or the whole pipeline from a checkout: ``python train.py --help``. Same as ``rlhf-lightning``."""

from rlhf_lightning.cli.main import main

if __name__ == "__main__":
    main()
