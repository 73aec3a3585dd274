//! Colours that people with any colour vision can tell apart (Okabe and Ito, 2008), on a light
//! ground.

/// For series, in order.
pub(crate) const SERIES: [&str; 6] =
    ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
/// From little to much, in red, green and blue: lighter to darker, so that it reads in grey, too.
pub(crate) const HEAT: [[u8; 3]; 4] =
    [[0xF4, 0xF8, 0xFB], [0x9C, 0xC9, 0xE3], [0x00, 0x72, 0xB2], [0x00, 0x2C, 0x4D]];
/// The ground.
pub(crate) const GROUND: &str = "#FFFFFF";
/// Titles and values.
pub(crate) const INK: &str = "#222222";
/// Axis labels.
pub(crate) const QUIET: &str = "#595959";
/// Grid lines.
pub(crate) const GRID: &str = "#E4E4E4";

pub(crate) fn series(index: usize) -> &'static str {
    SERIES[index % SERIES.len()]
}
