"""``python -m workers.serving``: a serving worker, until SIGTERM or SIGINT."""

import asyncio
import logging
import signal

from service.core import storage
from service.settings import settings
from workers.serving.worker import Worker


async def main() -> None:
    worker = Worker(settings())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, worker.stop)
    await worker.run()


if __name__ == "__main__":
    storage.restrict_umask()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    asyncio.run(main())
