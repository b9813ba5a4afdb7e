//! The chart: a small panel of bars for each of the figures that matter most.

use std::path::Path;

use plotters::coord::Shift;
use plotters::element::{Rectangle, Text};
use plotters::prelude::{
    Color, DrawingArea, IntoDrawingArea, IntoFont, RGBColor, SVGBackend, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, TextStyle};

use crate::Fallible;
use crate::contenders::Contender;
use crate::results::Results;

struct Panel {
    row: &'static str,
    title: &'static str,
    unit: &'static str,
    decimals: usize,
}

const fn panel(
    row: &'static str,
    title: &'static str,
    unit: &'static str,
    decimals: usize,
) -> Panel {
    Panel { row, title, unit, decimals }
}

const COLUMNS: usize = 3;
const PANELS: [Panel; 9] = [
    panel("short cpu", "Short connections, 64 at once", "CPU s per 10k, less is better", 2),
    panel("trips64 cpu", "Round trips, 64 connections", "CPU s per 1M, less is better", 1),
    panel("trips1000 cpu", "Round trips, 1000 connections", "CPU s per 1M, less is better", 1),
    panel("bulk1 cpu", "Bulk, one connection", "CPU s per GB, less is better", 2),
    panel("bulk16 cpu", "Bulk, 16 connections, both ways", "CPU s per GB, less is better", 2),
    panel("bulk16 rate", "Bulk, 16 connections, both ways", "GB/s, more is better", 1),
    panel("memory1000", "Memory per idle connection", "KiB in user space, less is better", 1),
    panel("beside p99", "p99 of a round trip beside bulk", "ms, less is better", 1),
    panel("removal", "250 of 1000 closed on removal", "ms until the last, less is better", 1),
];

const WIDTH: u32 = 1080;
const MARGIN: i32 = 16;
/// From the top of a panel to its first bar.
const PANEL_HEAD: i32 = 54;
const BAR: i32 = 20;
const NAME_WIDTH: i32 = 112;
const FIGURE_WIDTH: i32 = 48;
const CAPTION_LINE: i32 = 18;

const INK: RGBColor = RGBColor(0x22, 0x2b, 0x33);
const FAINT: RGBColor = RGBColor(0x6b, 0x77, 0x82);
const OURS: RGBColor = RGBColor(0x00, 0x7a, 0x6e);
const FLOOR: RGBColor = RGBColor(0xd5, 0xda, 0xde);
const OTHERS: RGBColor = RGBColor(0x9f, 0xb3, 0xc8);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(crate) fn draw(
    path: &Path,
    results: &Results,
    contenders: &[&Contender],
    caption: &str,
) -> Fallible<()> {
    let panel_height = PANEL_HEAD + BAR * contenders.len() as i32 + MARGIN;
    let caption = wrap(caption, 170);
    let foot = MARGIN + CAPTION_LINE * caption.len() as i32;
    let height = panel_height * PANELS.len().div_ceil(COLUMNS) as i32 + foot + MARGIN;
    let root = SVGBackend::new(path, (WIDTH, height as u32)).into_drawing_area();
    // Not transparent, so that it can be read on a dark page.
    root.fill(&WHITE)?;
    let (panels, foot) = root.split_vertically(height - foot);
    for (panel, area) in
        PANELS.iter().zip(panels.split_evenly((PANELS.len().div_ceil(COLUMNS), COLUMNS)))
    {
        draw_panel(&area, panel, results, contenders)?;
    }
    for (index, line) in caption.iter().enumerate() {
        write(&foot, line, (MARGIN, CAPTION_LINE * index as i32), HPos::Left, font(15, FAINT))?;
    }
    Ok(root.present()?)
}

fn draw_panel(
    area: &Area<'_>,
    panel: &Panel,
    results: &Results,
    contenders: &[&Contender],
) -> Fallible<()> {
    write(area, panel.title, (MARGIN, MARGIN), HPos::Left, font(18, INK).bold())?;
    write(area, panel.unit, (MARGIN, MARGIN + 20), HPos::Left, font(15, FAINT))?;
    let scale = if panel.unit.starts_with("ms, ") { 1e-3 } else { 1.0 };
    let median = |contender: &Contender| {
        results.median(panel.row, contender.name).map(|median| median * scale)
    };
    let most = contenders
        .iter()
        .filter_map(|contender| median(contender))
        .fold(f64::MIN_POSITIVE, f64::max);
    let (width, _) = area.dim_in_pixel();
    let room = width as i32 - 2 * MARGIN - NAME_WIDTH - FIGURE_WIDTH;
    let with_figure =
        contenders.iter().filter_map(|contender| Some((contender, median(contender)?)));
    for (index, (contender, median)) in with_figure.enumerate() {
        let top = PANEL_HEAD + BAR * index as i32;
        let left = MARGIN + NAME_WIDTH;
        write(area, contender.title, (left - 8, top + 3), HPos::Right, font(15, INK))?;
        let right = left + (f64::from(room) * median / most).round() as i32;
        let color = match contender.name {
            "tinylb" => OURS,
            "bare-relay" => FLOOR,
            _ => OTHERS,
        };
        area.draw(&Rectangle::new(
            [(left, top + 2), (right.max(left + 1), top + BAR - 3)],
            color.filled(),
        ))?;
        let figure = format!("{median:.*}", panel.decimals);
        write(area, &figure, (right.max(left + 1) + 5, top + 3), HPos::Left, font(15, INK))?;
    }
    Ok(())
}

struct Font {
    size: i32,
    color: RGBColor,
    style: FontStyle,
}

fn font(size: i32, color: RGBColor) -> Font {
    Font { size, color, style: FontStyle::Normal }
}

impl Font {
    fn bold(self) -> Self {
        Self { style: FontStyle::Bold, ..self }
    }
}

fn write(area: &Area<'_>, text: &str, at: (i32, i32), side: HPos, font: Font) -> Fallible<()> {
    let style = TextStyle::from(("sans-serif", font.size).into_font().style(font.style));
    let style = style.color(&font.color).pos(Pos::new(side, VPos::Top));
    Ok(area.draw(&Text::new(text, at, style))?)
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
