//! From a schedule that fails to a short one that still does.

/// Leaves out what is not needed to fail, and returns what is. `fails` is asked at most `tries`
/// times.
///
/// It takes out runs of steps, longest first, as long as that helps; with enough tries, no step
/// that is left can be spared.
pub(crate) fn shrink<T: Clone>(
    steps: &[T],
    mut tries: usize,
    mut fails: impl FnMut(&[T]) -> bool,
) -> Vec<T> {
    let mut steps = steps.to_vec();
    let mut run = steps.len().div_ceil(2).max(1);
    loop {
        let before = steps.len();
        let mut start = 0;
        while start < steps.len() {
            if tries == 0 {
                return steps;
            }
            tries -= 1;
            let rest = [&steps[..start], &steps[(start + run).min(steps.len())..]].concat();
            if fails(&rest) {
                steps = rest;
            } else {
                start += run;
            }
        }
        match run {
            1 if steps.len() == before => return steps,
            1 => {}
            _ => run = run.div_ceil(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_fails_and_none_of_it_can_be_spared() {
        let steps: Vec<u32> = (0..300).collect();
        let needs = |needed: &'static [u32]| {
            // In their order, since nothing moves.
            move |rest: &[u32]| needed.iter().all(|step| rest.contains(step))
        };
        for needed in [&[][..], &[0], &[299], &[17, 18], &[3, 150, 298]] {
            assert_eq!(shrink(&steps, usize::MAX, needs(needed)), needed);
        }
    }

    #[test]
    fn it_stops_after_so_many_tries_with_something_that_fails() {
        let steps: Vec<u32> = (0..300).collect();
        let mut tries = 0;
        let left = shrink(&steps, 10, |rest| {
            tries += 1;
            rest.contains(&250)
        });
        assert!(tries == 10 && left.contains(&250) && left.len() < steps.len());
    }
}
