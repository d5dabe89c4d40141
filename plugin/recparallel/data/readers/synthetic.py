"""The synthetic log: generated in MovieLens-100K's format, then read by MovieLens-100K's reader."""

import filecmp
import logging
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

from recparallel.data.readers.movielens_100k import MovieLens100K
from recparallel.data.synthetic import write_synthetic
from recparallel.errors import DataError

logger = logging.getLogger(__name__)


class Synthetic(MovieLens100K):
    """Generate a log with the default sizes of :func:`~recparallel.data.synthetic.write_synthetic` and ``seed``, and
    read it.

    The files are left in the folder if it is absent or empty. A folder that holds anything is neither written nor
    read, so that a log of another seed, or somebody's own, is never taken for this one.
    """

    name = "synthetic"
    source = "nowhere: it is generated from a seed, without a folder or into an empty one"
    generates = True

    def identity(self, folder: Path) -> Any:
        return ["seed", self.seed]

    def folder(self, data_dir: Path | None, scratch: Path) -> Path:
        write_synthetic(scratch, seed=self.seed)
        if data_dir is not None:
            self._leave(scratch, data_dir)
        return scratch

    def _leave(self, made: Path, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise DataError(f"dataset {self.name!r} is written into a folder, but {folder} is a file")
        there = {path.name for path in folder.glob("[!.]*")}
        if there:
            _, different, _ = filecmp.cmpfiles(made, folder, sorted(there & {*self.files}), shallow=False)
            if different or there - {*self.files}:
                logger.warning(
                    "%s holds other files and was not read: the log is generated (seed %d)", folder, self.seed
                )
            return
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.files:
            # Several ranks may get here at once; a rename never shows another one half a file.
            part = folder / f".{file}.{uuid4().hex}"
            shutil.copyfile(made / file, part)
            part.replace(folder / file)
