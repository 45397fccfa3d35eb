"""How long an MP3 file is, counted frame by frame.

Only a Xing or Info frame at its begin says how long an MP3 is. libsndfile takes its word, and where there is none
divides the size of the file by the bitrate of the first frame: at variable bitrate that can be less than half of what
there is, and the rest would never be read. Counting frame headers (ISO 11172-3, section 2.4.1.3) costs a few per
cent of decoding.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

_BITRATES_KBPS = {
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_VERSION_1 = 3
# Bytes of side information by (is version 1, is mono): the Xing tag lies behind them.
_SIDE_BYTES = {(True, False): 32, (True, True): 17, (False, False): 17, (False, True): 9}
# Frame sizes in bytes by the upper three bytes of a header; 0 for what is no Layer III header.
_sizes: dict[int, int] = {}


class Frames:
    """The frames of an MP3 file.

    Attributes:
        start: offset of the first frame with audio.
        number: frames with audio that are whole.
        promised: how many the file says it has, or None.
        has_gap: bytes that are no frame lie between frames.
    """

    def __init__(self, data: bytes | memoryview):
        offsets = _walk(data)
        first = next(offsets, None)
        self.start, self.number, self.promised, self.has_gap = 0, 0, None, False
        if first is None:
            return
        self.header = bytes(data[first : first + 4])
        self.promised = _promised(data, first)
        self.start = first if self.promised is None else first + _size(data, first)
        self.number = int(self.promised is None)
        end = first + _size(data, first)
        for offset in offsets:
            self.number += 1
            self.has_gap |= offset != end
            end = offset + _size(data, offset)

    @property
    def is_as_promised(self) -> bool:
        """Whether the file says how long it is, and is."""
        return self.promised is not None and abs(self.number - self.promised) <= 1

    def told(self, data: bytes) -> io.BytesIO:
        """The file with a frame before it that says its true length, for libsndfile to go by."""
        return io.BytesIO(_xing_frame(self.header, self.number) + data[self.start :])


def _walk(data: bytes | memoryview) -> Iterator[int]:
    """Offsets of the frames that are whole."""
    offset, end = _after_id3(data), len(data)
    synchronized = False
    while offset + 4 <= end:
        size = _size(data, offset)
        # A header by itself may be chance; one where the frame before has ended, or that another follows, is not.
        if size and (synchronized or offset + size == end or _size(data, offset + size)):
            if offset + size > end:
                return
            yield offset
            offset += size
            synchronized = True
        else:
            synchronized = False
            offset = bytes(data[offset + 1 : end]).find(b"\xff") + offset + 1 if size == 0 else offset + 1
            if offset < 1 or data[offset] != 0xFF:
                return


def _size(data: bytes | memoryview, offset: int) -> int:
    """Bytes of the frame whose header is there, 0 if there is none."""
    if offset + 4 > len(data):
        return 0
    key = data[offset] << 16 | data[offset + 1] << 8 | data[offset + 2]
    size = _sizes.get(key)
    if size is None:
        size = _sizes[key] = _frame_size(data[offset], data[offset + 1], data[offset + 2])
    return size


def _frame_size(first: int, second: int, third: int) -> int:
    version, layer = second >> 3 & 3, second >> 1 & 3
    bitrate, rate = third >> 4, third >> 2 & 3
    if first != 0xFF or second < 0xE0 or version == 1 or layer != 1 or bitrate in (0, 15) or rate == 3:
        return 0
    is_first = version == _VERSION_1
    kbps = _BITRATES_KBPS[1 if is_first else 2][bitrate - 1]
    return (144_000 if is_first else 72_000) * kbps // _RATES[version][rate] + (third >> 1 & 1)


def _tag_offset(header: bytes) -> int:
    return 4 + _SIDE_BYTES[header[1] >> 3 & 3 == _VERSION_1, header[3] >> 6 == 3]


def _promised(data: bytes | memoryview, first: int) -> int | None:
    """Frames by the Xing, Info or VBRI tag of the first frame; None if there is no tag, 0 if it has no number."""
    tag = bytes(data[first : first + 64])
    at = _tag_offset(tag[:4])
    if tag[at : at + 4] in (b"Xing", b"Info"):
        has_number = tag[at + 7] & 1
        return struct.unpack(">I", tag[at + 8 : at + 12])[0] if has_number else 0
    if tag[36:40] == b"VBRI":
        return struct.unpack(">I", tag[50:54])[0]
    return None


def _xing_frame(header: bytes, number: int) -> bytes:
    """A silent frame like the others that says their number."""
    frame = bytearray(header)
    frame[1] |= 1  # without a checksum
    frame[2] = 0xE0 | header[2] & 0x0D  # the highest bitrate, so that the tag fits, without padding
    at = _tag_offset(bytes(frame))
    frame += bytes(_frame_size(*frame[:3]) - 4)
    frame[at : at + 12] = b"Xing" + struct.pack(">II", 1, number)
    return bytes(frame)


def _after_id3(data: bytes | memoryview) -> int:
    """Where the audio begins: after ID3v2 tags, whose size is in four bytes of seven bits."""
    offset = 0
    while bytes(data[offset : offset + 3]) == b"ID3" and offset + 10 <= len(data):
        size = sum((data[offset + 6 + i] & 0x7F) << 7 * (3 - i) for i in range(4))
        offset += 10 + size + (10 if data[offset + 5] & 0x10 else 0)
    return offset
