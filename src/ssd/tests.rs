//! Problems and plans without a device.
