//! Damaged and foreign files end in an error that names the file and the part of it.
