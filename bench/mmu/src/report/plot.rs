//! Draws the results: costs on one vCPU as bars, faults by number of threads as curves.

use super::{
    Cost, Curve, DESIGNS, Results,
    sets::{FAULT, OWN_TABLES, OWN_VM, SAME_TABLES},
};
use anyhow::{Result, anyhow};
use plotters::prelude::{
    BLACK, ChartBuilder, Color, DrawingArea, DrawingBackend, IntoDrawingArea, IntoLogRange,
    LineSeries, RGBColor, Rectangle, SVGBackend, SeriesLabelPosition, WHITE,
};
use plotters::{
    coord::Shift,
    series::DashedLineSeries,
    style::{ShapeStyle, TextStyle},
};
use std::path::Path;

/// Colours of the designs, told apart by the colour-blind too.
const COLOURS: [RGBColor; 3] =
    [RGBColor(0x00, 0x72, 0xb2), RGBColor(0xe6, 0x9f, 0x00), RGBColor(0x99, 0x99, 0x99)];
const FONT: (&str, u32) = ("sans-serif", 14);
const CAPTION: (&str, u32) = ("sans-serif", 18);

/// Draws both plots into `folder`.
///
/// # Errors
/// A file cannot be written.
pub fn draw(results: &Results, folder: &Path) -> Result<()> {
    let costs = folder.join("mmu-costs.svg");
    let area = SVGBackend::new(&costs, (900, 560)).into_drawing_area();
    draw_costs(&area, &results.costs)
        .map_err(|error| anyhow!("cannot draw {}: {error}", costs.display()))?;
    let scaling = folder.join("mmu-scaling.svg");
    let area = SVGBackend::new(&scaling, (900, 520)).into_drawing_area();
    draw_scaling(&area, results)
        .map_err(|error| anyhow!("cannot draw {}: {error}", scaling.display()))
}

type Drawn<B> =
    Result<(), plotters::drawing::DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

fn draw_costs<B: DrawingBackend>(area: &DrawingArea<B, Shift>, costs: &[Cost]) -> Drawn<B> {
    area.fill(&WHITE)?;
    let all = || costs.iter().flat_map(|cost| cost.nanoseconds);
    let least = all().fold(f64::INFINITY, f64::min);
    let most = all().fold(1.0, f64::max);
    let floor = 10_f64.powf(least.log10().floor());
    let mut chart = ChartBuilder::on(area)
        .caption("Costs on one vCPU (logarithmic)", CAPTION)
        .margin(12)
        .x_label_area_size(70)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..costs.len() as f64, (floor..most * 2.0).log_scale())?;
    chart
        .configure_mesh()
        .max_light_lines(1)
        .disable_x_mesh()
        .disable_x_axis()
        .y_desc("nanoseconds")
        .y_label_formatter(&|value| format!("{value:.0}"))
        .label_style(FONT)
        .draw()?;
    for (design, colour) in COLOURS.into_iter().enumerate() {
        let bars = costs.iter().enumerate().map(|(place, cost)| {
            let left = place as f64 + 0.1 + 0.27 * design as f64;
            let corners = [(left, floor), (left + 0.25, cost.nanoseconds[design])];
            Rectangle::new(corners, colour.filled())
        });
        chart
            .draw_series(bars)?
            .label(DESIGNS[design])
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(FONT)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    names(area, &chart, costs)
}

/// Writes the operations' names below their bars, a line for each word.
fn names<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    chart: &plotters::chart::ChartContext<'_, B, Bars>,
    costs: &[Cost],
) -> Drawn<B> {
    use plotters::style::text_anchor::{HPos, Pos, VPos};
    let style = TextStyle::from(("sans-serif", 12)).pos(Pos::new(HPos::Center, VPos::Top));
    let (_, bottom) = chart.plotting_area().get_pixel_range();
    for (place, cost) in costs.iter().enumerate() {
        let (x, _) = chart.backend_coord(&(place as f64 + 0.5, 1.0));
        for (line, word) in cost.name.split(' ').enumerate() {
            area.draw_text(word, &style, (x, bottom.end + 6 + 14 * line as i32))?;
        }
    }
    Ok(())
}

type Bars = plotters::coord::cartesian::Cartesian2d<
    plotters::coord::types::RangedCoordf64,
    plotters::coord::combinators::LogCoord<f64>,
>;

/// How many designs a curve is drawn for: as good as it can get, for Roost alone.
fn drawn_designs(curve: &Curve) -> usize {
    if curve.set == OWN_VM { 1 } else { DESIGNS.len() }
}

fn draw_scaling<B: DrawingBackend>(area: &DrawingArea<B, Shift>, results: &Results) -> Drawn<B> {
    area.fill(&WHITE)?;
    let curves = |set| results.curve(set, FAULT).into_iter();
    let shown: Vec<&Curve> =
        [OWN_VM, OWN_TABLES, SAME_TABLES].into_iter().flat_map(curves).collect();
    let rates =
        shown.iter().flat_map(|curve| curve.points[..drawn_designs(curve)].iter().flatten());
    let most = rates.map(|point| point.rate).fold(1.0, f64::max);
    // The upper third is the legend's.
    let threads = results.machine.threads.last().map_or(1.0, |&threads| threads as f64);
    let mut chart = ChartBuilder::on(area)
        .caption("Faults by number of vCPUs", CAPTION)
        .margin(12)
        .x_label_area_size(45)
        .y_label_area_size(60)
        .build_cartesian_2d(0.9..threads + 0.1, 0.0..most * 1.7)?;
    chart
        .configure_mesh()
        .max_light_lines(1)
        .x_desc("threads")
        .y_desc("million faults a second")
        .x_labels(threads as usize + 1)
        .x_label_formatter(&|x| if x.fract() == 0.0 { format!("{x:.0}") } else { String::new() })
        .label_style(FONT)
        .draw()?;
    for curve in shown {
        for (design, colour) in COLOURS.into_iter().enumerate().take(drawn_designs(curve)) {
            let line = curve.points[design].iter().map(|p| (p.threads as f64, p.rate));
            let style = ShapeStyle::from(&colour).stroke_width(2);
            let drawn = match curve.set {
                OWN_TABLES => chart.draw_series(LineSeries::new(line, style).point_size(3))?,
                SAME_TABLES => chart.draw_series(DashedLineSeries::new(line, 8, 5, style))?,
                _ => {
                    chart.draw_series(DashedLineSeries::new(line, 2, 4, colour.mix(0.6).into()))?
                }
            };
            let dash = match curve.set {
                OWN_TABLES => "",
                SAME_TABLES => " (dashed)",
                _ => " (dotted)",
            };
            drawn.label(format!("{}, {}{dash}", DESIGNS[design], curve.set)).legend(
                move |(x, y)| Rectangle::new([(x, y - 2), (x + 12, y + 2)], colour.filled()),
            );
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(FONT)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    Ok(())
}
