"""`python -m jaxfast.data.tfds_prepare NAME`: a data set of TensorFlow Datasets, prepared as ArrayRecord files.

Most data sets need TensorFlow to be prepared, and none to be read: preparing is a program of its own, so that no
process that trains imports TensorFlow.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxfast._extras import need
from jaxfast.data.tfds_images import ARRAY_RECORD, prepared_folder
from jaxfast.messages import nearest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its status: 0, or 2 where the data set cannot be prepared."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxfast.data.tfds_prepare",
        description="Download a data set of TensorFlow Datasets and write it as ArrayRecord files. "
        "Of one that is there as TFRecord files, write a copy beside them.",
    )
    parser.add_argument("name", metavar="NAME", help="NAME, NAME/CONFIG, or the folder of a prepared data set")
    parser.add_argument("--data-dir", metavar="DIR", help="default: TFDS_DATA_DIR, else ~/tensorflow_datasets")
    options = parser.parse_args(arguments)
    try:
        print(prepare(options.name, options.data_dir))
    except (ImportError, ValueError, OSError, AssertionError) as error:  # tfds asserts what one has to download oneself
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


def prepare(name: str, data_dir: str | os.PathLike | None = None) -> Path:
    """Download and prepare a data set as ArrayRecord files, or copy its TFRecord files; return its folder.

    Downloading imports TensorFlow, copying does not. Raises ImportError with the pip command for what is not
    installed, ValueError for an unknown name and for files of another format, and what TensorFlow Datasets raises.
    """
    tfds = need("tensorflow_datasets", extra="tfds-prepare", purpose="preparing data sets")
    try:
        folder = prepared_folder(name, data_dir)
    except FileNotFoundError:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # TensorFlow would take the memory that training needs
        need("tensorflow", extra="tfds-prepare", purpose="preparing data sets")
        stem, known = re.split("[/:]", name)[0], tfds.list_builders(with_community_datasets=False)
        if stem not in known:
            close = nearest(stem, known)
            raise ValueError(f"TensorFlow Datasets {tfds.__version__} has no data set {stem!r}{close}") from None
        builder = tfds.builder(name, data_dir=data_dir)
        builder.download_and_prepare(file_format=ARRAY_RECORD)
        return Path(builder.data_dir)
    _copy_records(tfds, folder)
    return folder


def _copy_records(tfds, folder: Path) -> None:
    """Write the examples in TFRecord files as ArrayRecord files beside them, unless there are such files already."""
    from tensorflow_datasets.core import file_adapters

    info = tfds.builder_from_directory(folder).info
    form, formats = tfds.core.FileFormat, info.available_file_formats()
    if form.ARRAY_RECORD in formats:
        return
    if info.file_format is not form.TFRECORD:
        raise ValueError(f"{folder} holds {info.file_format.value} files: only tfrecord files can be copied")
    for split in info.splits.values():
        names = split.filename_template
        paths, copies = (
            names.replace(filetype_suffix=suffix).sharded_filepaths(split.num_shards)
            for suffix in (form.TFRECORD.value, ARRAY_RECORD)
        )
        for path, copy in zip(paths, copies, strict=True):
            file_adapters.ArrayRecordFileAdapter.write_examples(copy, enumerate(_tf_records(Path(path))))
    # the last thing to do, so that a copy that was broken off is made anew
    info.add_alternative_file_format(ARRAY_RECORD)
    info.write_to_directory(folder)


def _tf_records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: each has its length (8 bytes), a checksum (4), its bytes and a checksum (4)."""
    with path.open("rb") as file:
        while head := file.read(12):
            size = int.from_bytes(head[:8], "little")
            record = file.read(size + 4)
            if len(record) < size + 4:
                raise ValueError(f"{path} is cut short: download it again")
            yield record[:-4]


if __name__ == "__main__":
    sys.exit(main())
