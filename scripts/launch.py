"""torchrun, which ends as its processes do: with their status, and without a traceback of its own.

args.sh starts it for several processes; arguments are those of torchrun.
"""

import logging

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(args: list[str] | None = None) -> None:
    """Run torchrun. Raises SystemExit with 128 + the signal that ended it, or the status of the process that failed."""
    for name in ("agent.server.api", "multiprocessing.api"):  # they warn of every process that they signal
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.ERROR)
    try:
        torchrun.main(args)
    except SignalException as stopped:
        raise SystemExit(128 + int(stopped.sigval)) from None
    except ChildFailedError as failed:
        status = failed.get_first_failure()[1].exitcode
        raise SystemExit(status if status > 0 else 128 - status) from None  # below 0: a signal killed it


if __name__ == "__main__":
    main()
