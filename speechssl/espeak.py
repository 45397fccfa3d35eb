"""espeak-ng's library, loaded from the wheel `espeakng-loader`, which needs no system package.

It is under the GPL-3, unlike this project, so it is an extra, and loaded only where somebody asks for it. It is loaded
from a copy, because its synthesizer remembers what it said before, which no function of its library resets; and its
data through a short link, because it takes no long paths.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from speechssl.errors import UserError

# Names and values of espeak-ng's speak_lib.h.
_OUTPUT_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000  # else a failed initialisation ends the whole process
_PATH_MAX = 150  # its buffer for the data folder has 160 bytes


@contextmanager
def loaded(purpose: str) -> Iterator[tuple[ctypes.CDLL, int]]:
    """The library in its first state, and the sample rate that it speaks at.

    Args:
        purpose: who needs it, for the sentence that says that it is missing.

    Raises:
        UserError: espeakng-loader is not installed, or its library cannot be loaded.
    """
    try:
        import espeakng_loader
    except ImportError:
        raise UserError(f"{purpose} espeak-ng, which is not installed: pip install espeakng-loader") from None
    with tempfile.TemporaryDirectory(prefix="espeak") as folder:
        data = Path(folder) / "espeak-ng-data"
        data.symlink_to(espeakng_loader.get_data_path(), target_is_directory=True)
        if not (data / "phontab").is_file():
            raise UserError("espeak-ng has no voices: pip install --force-reinstall espeakng-loader")
        if len(os.fsencode(data)) > _PATH_MAX:
            raise UserError(f"{folder}: too long a path for espeak-ng; set TMPDIR to a shorter one, such as /tmp.")
        copy = shutil.copy(espeakng_loader.get_library_path(), folder)
        try:
            library = ctypes.CDLL(copy)
        except OSError as error:
            raise UserError(f"espeak-ng cannot be loaded ({error}); set TMPDIR to another folder.") from None
        sample_rate = library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data), _DONT_EXIT)
        if sample_rate <= 0:
            raise UserError("espeak-ng does not start: pip install --force-reinstall espeakng-loader")
        yield library, sample_rate
        library.espeak_Terminate()
