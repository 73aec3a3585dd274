//! What was learned against what was forgotten.

use tunebook_charts::{Figure, ParetoChart, ParetoPoint};
use tunebook_evaluate::statistics::Interval;
use tunebook_evaluate::{Error, Forgetting, Score};

/// A score against forgetting, one point a checkpoint or a strategy, with their intervals and the
/// frontier: the points that no other one beats in one without being worse in the other.
///
/// ```no_run
/// use tunebook::prelude::*;
/// # fn f(model: Model, split: Splits) -> Result<(), Box<dyn std::error::Error>> {
/// let mut points: Vec<(String, Score, Forgetting)> = Vec::new();
/// for name in ["lora", "ia3"] {
///     let tuned = model.with_adapter(name)?;
///     let found = evaluate(&tuned, &split.validation)?;
///     let Some(accuracy) = found.score("token_accuracy") else { continue };
///     points.push((name.to_owned(), accuracy.clone(), forgetting(&tuned, &model.base())?));
/// }
/// forgetting_chart(&points)?.save_svg("forgetting.svg")?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Scores that are not comparable: of another metric, or on other rows.
pub fn forgetting_chart(points: &[(String, Score, Forgetting)]) -> Result<Figure, Error> {
    let Some((first_name, first, _)) = points.first() else {
        return Ok(
            ParetoChart { title: "Score against forgetting".into(), ..Default::default() }.figure()
        );
    };
    if let Some((name, other, _)) = points.iter().find(|(_, s, _)| s.signature != first.signature) {
        return Err(Error::NotComparable {
            field: "score".to_owned(),
            problem: format!(
                "that of `{name}` is `{}`, that of `{first_name}` is `{}`; expected the same metric on the \
                 same rows",
                other.signature, first.signature
            ),
        });
    }
    let ends = |interval: &Interval| (interval.low, interval.high);
    let point = |(name, score, forgetting): &(String, Score, Forgetting)| ParetoPoint {
        name: name.clone(),
        x: forgetting.forgetting,
        y: score.value,
        x_interval: forgetting.interval.as_ref().map(ends),
        y_interval: score.interval.as_ref().map(ends),
    };
    let metric = &first.metric;
    Ok(ParetoChart {
        title: format!("{} against forgetting", metric.name),
        x_label: "forgetting (nats a token)".into(),
        y_label: metric.name.clone(),
        points: points.iter().map(point).collect(),
        y_higher_is_better: metric.higher_is_better,
        ..ParetoChart::default()
    }
    .figure())
}
