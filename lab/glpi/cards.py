"""The inventory the stand-in answers from: each serial number's cards follow from the number alone."""

import zlib

MANY = 60  # more than one page of the 50 rows a client usually asks for


def card_ids(serial: str) -> range:
    """The ids of all cards filed under `serial`: none for 15 in 100 serials, 2 to 4 for 10, `MANY`
    for 2, else one.
    """
    checksum = zlib.crc32(serial.encode())
    first_id = 1000 + checksum % 1_000_000
    return range(first_id, first_id + _count(checksum))


def _count(checksum: int) -> int:
    bucket, rest = checksum % 100, checksum // 100
    if bucket < 15:
        return 0
    if bucket < 25:
        return 2 + rest % 3
    if bucket < 27:
        return MANY
    return 1
