"""sniproxy's metrics, asked for over its admin address as a Prometheus would."""

import contextlib
import threading
import urllib.request
from collections.abc import Iterator

from bench.proxies import Proxy

SCRAPE_SECONDS = 1.0  # a Prometheus asks every 15 to 60


def scrape(proxy: Proxy) -> str:
    with urllib.request.urlopen(f"http://{proxy.admin}/metrics") as answer:
        text: str = answer.read().decode()
        return text


@contextlib.contextmanager
def scraped(proxy: Proxy) -> Iterator[None]:
    """Have the metrics read once a second for as long as the block."""
    is_over = threading.Event()

    def scrape_on() -> None:
        while not is_over.wait(SCRAPE_SECONDS):
            scrape(proxy)

    scrape(proxy)
    thread = threading.Thread(target=scrape_on)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
