"""Page counters of printers that exist only on paper: they grow by the hour, each at its own pace."""

import time


def read_page_count(printer_id: int) -> int:
    """The number of pages the printer has printed so far."""
    hours_in_service = int(time.time()) // 3600 % 50_000
    pages_per_hour = 1 + printer_id % 17
    return hours_in_service * pages_per_hour
