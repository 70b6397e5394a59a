//! Curves as inline SVG.

use std::fmt::Write;

use super::html::escape;

/// The drawing's size; labels stand in the margins.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 15.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 30.0;

/// The most points a curve is drawn with; a bin of more is drawn by its lowest and highest.
const POINTS: usize = 1200;

/// A logarithmic axis where the values span more than this.
const SPAN: f64 = 30.0;

/// How values become heights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    /// As they are.
    Linear,
    /// By their logarithm where all are positive and they span much.
    Fitting,
}

/// One curve.
#[derive(Clone, Debug)]
pub(super) struct Series {
    name: &'static str,
    colour: &'static str,
    stroke: f64,
    /// `(step, value)`, by rising step.
    pub(super) points: Vec<(f64, f64)>,
}

impl Series {
    /// A curve in the foreground.
    pub(super) fn thick(name: &'static str, colour: &'static str, points: Vec<(f64, f64)>) -> Self {
        Self {
            name,
            colour,
            stroke: 2.0,
            points: finite(points),
        }
    }

    /// A curve in the background.
    pub(super) fn thin(name: &'static str, colour: &'static str, points: Vec<(f64, f64)>) -> Self {
        Self {
            stroke: 0.7,
            ..Self::thick(name, colour, points)
        }
    }
}

fn finite(mut points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    points.retain(|(x, y)| x.is_finite() && y.is_finite());
    points
}

/// The drawing.
pub(super) fn chart(title: &str, axis: Axis, series: &[Series]) -> String {
    let all = || series.iter().flat_map(|series| &series.points);
    let (x0, x1) = range(all().map(|p| p.0));
    let (low, high) = range(all().map(|p| p.1));
    let log = axis == Axis::Fitting && low > 0.0 && high / low > SPAN;
    let height = |y: f64| if log { y.log10() } else { y };
    let (y0, y1) = padded(height(low), height(high));
    let (x0, x1) = if x0 < x1 {
        (x0, x1)
    } else {
        (x0 - 1.0, x1 + 1.0)
    };
    let px = |x: f64| LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
    let py = |y: f64| HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" font-size=\"12\" font-family=\"sans-serif\"><title>{}</title>\n",
        escape(title)
    );
    for tick in ticks(y0, y1) {
        let (y, text) = (py(tick), number(if log { 10_f64.powf(tick) } else { tick }));
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {y:.1}H{}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0
        );
    }
    for tick in ticks(x0, x1) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            px(tick),
            HEIGHT - 8.0,
            number(tick)
        );
    }
    let mut legend = LEFT;
    for series in series.iter().filter(|series| !series.points.is_empty()) {
        let mut path = String::new();
        for (i, (x, y)) in thinned(&series.points).into_iter().enumerate() {
            let verb = if i == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{verb}{:.1} {:.1}", px(x), py(height(y)));
        }
        let (name, colour, stroke) = (series.name, series.colour, series.stroke);
        // A single point is a dot: round caps make a line without length one.
        let dot = if series.points.len() == 1 { "h0" } else { "" };
        let _ = write!(
            svg,
            "<path d=\"{path}{dot}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{stroke}\" stroke-linejoin=\"round\" stroke-linecap=\"round\"/>\n\
             <text x=\"{legend}\" y=\"18\" fill=\"{colour}\">{}</text>\n",
            escape(name)
        );
        legend += 10.0 * name.len() as f64 + 20.0;
    }
    svg + "</svg>"
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
        (low.min(v), high.max(v))
    })
}

/// Some room above and below, also where all values are the same.
fn padded(low: f64, high: f64) -> (f64, f64) {
    let room = 0.05 * (high - low);
    let room = if room > 0.0 {
        room
    } else {
        0.05 * low.abs() + 1e-9
    };
    (low - room, high + room)
}

/// Round numbers between `low` and `high`, about five.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let raw = (high - low) / 5.0;
    let power = 10_f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|step| *step >= raw)
        .unwrap_or(raw);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last.min(first + 20))
        .map(|i| i as f64 * step)
        .collect()
}

/// A number of at most four digits.
fn number(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e6).contains(&size) {
        return format!("{value:.1e}");
    }
    let digits = (3 - size.max(1e-3).log10().floor() as i32).clamp(0, 6) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        let text = text.trim_end_matches('0').trim_end_matches('.');
        return text.to_owned();
    }
    text
}

/// Bins of neighbours, each by its lowest and highest point in their order.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= POINTS {
        return points.to_vec();
    }
    let bin = points.len().div_ceil(POINTS / 2);
    let mut kept = Vec::new();
    for bin in points.chunks(bin) {
        let by = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let ends = [bin.iter().min_by(by), bin.iter().max_by(by)];
        let mut ends: Vec<(f64, f64)> = ends.into_iter().flatten().copied().collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        kept.extend(ends);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(31.2, 33.9), [32.0, 33.0]);
        for (value, text) in [
            (0.25, "0.25"),
            (20000.0, "20000"),
            (1e-5, "1.0e-5"),
            (0.0, "0"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn thinning_keeps_the_peaks() {
        let mut points: Vec<(f64, f64)> = (0..50_000).map(|i| (f64::from(i), 1.0)).collect();
        points[31_234].1 = 9.0;
        points[777].1 = -9.0;
        let kept = thinned(&points);
        assert!(kept.len() <= POINTS && kept.is_sorted_by(|a, b| a.0 <= b.0));
        assert!(kept.contains(&(31_234.0, 9.0)) && kept.contains(&(777.0, -9.0)));
    }

    #[test]
    fn a_curve_spans_the_drawing_and_nothing_is_no_number() {
        let points = vec![(0.0, 1.0), (1.0, f64::NAN), (10.0, 1000.0)];
        let svg = chart(
            "a < b",
            Axis::Fitting,
            &[Series::thick("x", "#000", points)],
        );
        assert!(svg.contains("a &lt; b"));
        assert!(
            svg.contains(&format!("M{LEFT:.1} ")) && svg.contains("L985.0 "),
            "{svg}"
        );
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let flat = chart(
            "",
            Axis::Linear,
            &[Series::thin("x", "#000", vec![(3.0, 0.0)])],
        );
        assert!(!flat.contains("NaN") && !flat.contains("inf"), "{flat}");
    }
}
