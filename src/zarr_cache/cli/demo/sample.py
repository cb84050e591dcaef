"""A real array to read: the 4-D MRI scan that nibabel brings along for its own tests."""

from __future__ import annotations

import asyncio
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
from zarr.api.asynchronous import create_group

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

ARRAY = "scan"
"""Path of the array within the group that `write_sample` writes."""

CHUNKS = (32, 24, 12, 1)
"""Of the (128, 96, 24, 2) voxels: 64 chunks of 18 kB."""


def write_sample(folder: Path) -> npt.NDArray[Any]:
    """Do what `write` does, and return once it is done."""
    return asyncio.run(write(folder))


async def write(folder: Path) -> npt.NDArray[Any]:
    """Write the scan as a Zarr group with one array into `folder`, and return its voxels.

    Raises
    ------
    FileNotFoundError
        This nibabel was installed without its test data.
    """
    with as_file(files(nibabel) / "tests" / "data" / "example4d.nii.gz") as path:
        image = nibabel.nifti1.Nifti1Image.from_filename(path)
        # Not get_fdata(): the integers as they are stored.
        voxels = np.asanyarray(image.dataobj)
    # Not zarr's blocking functions: interrupted, they leave tasks behind that go on writing.
    group = await create_group(
        store=folder, attributes={"source": "nibabel, tests/data/example4d.nii.gz"}
    )
    await group.create_array(
        ARRAY,
        data=voxels,
        chunks=CHUNKS,
        dimension_names=("x", "y", "z", "time"),
        attributes={"voxel_size_mm": image.header["pixdim"][1:4].tolist()},
    )
    return np.asarray(voxels)
