"""Names of sources without secrets, and reads that tell which version of a value was sent.

Imports ``core``.

A new kind of source is a function that returns its name, and a line in one of three tables:

- `zarr_stores.ZARR_STORES` for a class of zarr's `Store`,
- `file_systems.FILE_SYSTEMS` for a file system of fsspec,
- `object_stores.OBJECT_STORES` for an object store of obstore.

A table has the class by its name, so that no optional package is imported for it. The functions in
`urls` remove secrets from URLs. `names.name_of` looks a source up in the tables. Another package
adds its own class with `names.register_namespace`.

`readers.reader_of` gives the reader of a source: `local_reads`, `obstore_reads` or
`fsspec_reads`. What identifies a version is in `validators`.
"""
