"""The array of the demo: the 4-D MRI scan among the test data of nibabel."""

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
"""Path of the array in the group that `write` creates."""

CHUNKS = (32, 24, 12, 1)
"""The scan of (128, 96, 24, 2) voxels has 64 chunks of 18 kB."""


def write_sample(folder: Path) -> npt.NDArray[Any]:
    """As `write`, from code without an event loop."""
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
        # get_fdata() would convert the stored integers.
        voxels = np.asanyarray(image.dataobj)
    # When zarr's blocking functions are interrupted, their tasks continue to write.
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
