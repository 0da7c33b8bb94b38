"""``python -m mobileone_ext.engine.launch``: torchrun, with its options, for processes that say what went wrong.

torchrun adds a traceback of its own to the error of its processes, whatever that was.
"""

import logging
import os
import signal

from .. import cli
from ..files import HOW_TO_GO_ON
from ..text import one_line


def main() -> int:
    """Run torchrun; the exit code of the process that failed first."""
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # With --max-restarts a group would find the addresses of the one before it in the store of --rdzv-backend=c10d.
    os.environ.setdefault('TORCH_DISABLE_SHARE_RDZV_TCP_STORE', '1')
    os.environ[cli.LAUNCHER] = str(os.getpid())
    for name in ('run', 'elastic.agent.server.api', 'elastic.multiprocessing.api'):
        logging.getLogger(f'torch.distributed.{name}').setLevel(logging.CRITICAL)
    try:
        run.main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise ValueError(f'process {rank} was killed by signal {-failure.exitcode}; {HOW_TO_GO_ON}') from None
        return failure.exitcode
    except SignalException as error:
        return 1 if error.sigval == signal.SIGHUP else 128 + error.sigval
    except DistError as error:
        raise ValueError(f'the processes cannot meet: {one_line(error)} (MASTER_PORT=N names another port)') from None
    return 0


if __name__ == '__main__':
    cli.run(main)
