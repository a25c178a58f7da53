//! Pages that are touched first, given back, huge, and more than are kept.

use super::*;

const SECOND: u64 = 1_000_000_000;

fn bytes(growth: &Growth) -> Vec<(Option<u32>, u64, u64)> {
    let uses = growth.uses(&Thresholds::default()).unwrap();
    uses.sites
        .iter()
        .map(|one| (one.site, one.bytes / PAGE, one.samples))
        .collect()
}

#[test]
fn what_is_given_back_is_taken_off_the_site_that_touched_it() {
    let mut growth = Growth::default();
    assert!(growth.uses(&Thresholds::default()).is_none());
    for page in 0..10 {
        growth.touch(page, 100 + page, Some(1), 1, false);
        growth.touch(page, 200 + page, Some(2), 3, false);
    }
    growth.remove(105..205);
    growth.move_range(205..207, 1000);
    growth.remove(1001..1002);
    assert_eq!(bytes(&growth), [(Some(2), 12, 4), (Some(1), 5, 5)]);
    // Another touches what was given back unseen.
    growth.touch(20, 100, Some(3), 1, false);
    assert_eq!(
        bytes(&growth),
        [(Some(2), 12, 4), (Some(1), 4, 4), (Some(3), 1, 1)]
    );
    growth.remove(0..u64::MAX);
    assert_eq!(bytes(&growth), []);
}

#[test]
fn a_fault_that_may_have_brought_a_huge_page_counts_for_all_of_it_until_it_did_not() {
    let mut growth = Growth::default();
    growth.touch(1, 5, Some(1), 2, true);
    growth.touch(2, 512, Some(2), 1, true);
    let error = |growth: &Growth, at: usize| {
        growth.uses(&Thresholds::default()).unwrap().sites[at].bytes_error / PAGE
    };
    // √(2 · 1) · 512 pages, and what is known has none.
    assert_eq!((error(&growth, 0), error(&growth, 1)), (724, 0));
    assert_eq!(bytes(&growth), [(Some(1), 1024, 1), (Some(2), 512, 1)]);
    growth.touch(3, 6, Some(1), 1, true);
    assert_eq!(bytes(&growth), [(Some(2), 512, 1), (Some(1), 3, 2)]);
    growth.none_is_huge(0..2048, 2);
    assert_eq!(bytes(&growth)[0], (Some(2), 512, 1), "touched afterwards");
    growth.none_is_huge(0..2048, 3);
    assert_eq!(bytes(&growth), [(Some(1), 3, 2), (Some(2), 1, 1)]);
}

#[test]
fn of_few_faults_that_are_told_none_counts_for_a_huge_page() {
    let mut growth = Growth::default();
    growth.touch(1, 5, Some(1), FAULTS_OF_HUGE + 1, true);
    assert_eq!(bytes(&growth), [(Some(1), FAULTS_OF_HUGE + 1, 1)]);
}

#[test]
fn what_is_left_of_a_huge_page_stays() {
    let mut growth = Growth::default();
    growth.touch(1, 0, Some(1), 1, true);
    growth.remove(100..116);
    assert_eq!(bytes(&growth), [(Some(1), 496, 1)]);
    growth.touch(2, 100, Some(1), 1, true);
    assert_eq!(bytes(&growth), [(Some(1), 497, 2)]);
    growth.touch(3, 1024, Some(2), 1, true);
    growth.remove(1030..5000);
    growth.remove(1020..1024);
    assert_eq!(bytes(&growth), [(Some(1), 497, 2), (Some(2), 6, 1)]);
}

#[test]
fn beyond_the_bound_pages_stand_for_more_and_sums_stay_about_right() {
    let mut growth = Growth::default();
    let touched = 5 * MAX_PAGES as u64;
    for page in 0..touched {
        growth.touch(page * 7, page, Some((page % 2) as u32), 1, false);
    }
    assert!(growth.pages.len() <= MAX_PAGES);
    let uses = growth.uses(&Thresholds::default()).unwrap();
    for one in &uses.sites {
        let off = (one.bytes / PAGE).abs_diff(touched / 2);
        // Of 20,480 pages each stands for eight or so: 8 √(20,480 / 8) = 405.
        assert!(off < 1700, "{off}");
        let error = one.bytes_error / PAGE;
        assert!((150..800).contains(&error), "{error}");
    }
}

#[test]
fn stacks_that_differ_within_the_allocator_are_one_site() {
    let mut growth = Growth::default();
    let mut site = |stack, frames: &[u64]| growth.site(stack, frames, |address| address < 100);
    assert_eq!(site(1, &[7, 8, 500, 600]), 1);
    assert_eq!(site(2, &[9, 500, 600]), 1);
    assert_eq!(site(3, &[9, 501, 600]), 3);
    assert_eq!(site(4, &[500, 600]), 4, "it touches by itself");
    assert_eq!((site(5, &[9, 8]), site(6, &[])), (5, 6));
}

#[test]
fn sites_beyond_the_bound_are_one() {
    let mut growth = Growth::default();
    for page in 0..2 * MAX_SITES as u64 {
        growth.touch(0, page, Some(page as u32), 1, false);
    }
    let sites = bytes(&growth);
    assert_eq!(sites.len(), MAX_SITES + 1);
    assert_eq!(sites[0], (None, MAX_SITES as u64, MAX_SITES as u64));
}

#[test]
fn a_site_that_keeps_growing_is_a_candidate() {
    let mut growth = Growth::default();
    let thresholds = Thresholds::default();
    growth.switch(0, true);
    for second in 0..300u64 {
        for page in 0..5 {
            growth.touch(second * SECOND, second * 10 + page, Some(1), 1, false);
        }
        // A buffer that is mapped anew each time.
        growth.remove(1 << 20..1 << 21);
        for page in 0..500 {
            growth.touch(second * SECOND, (1 << 20) + page, Some(2), 1, false);
        }
        growth.tick(second * SECOND, &thresholds);
    }
    growth.switch(300 * SECOND, false);
    let uses = growth.uses(&thresholds).unwrap();
    let told: Vec<_> = uses
        .sites
        .iter()
        .map(|one| (one.site, one.trend.is_candidate))
        .collect();
    assert_eq!(told, [(Some(1), true), (Some(2), false)]);
    let slope = uses.sites[0].trend.bytes_per_second;
    assert!((slope / (5 * PAGE) as f64 - 1.0).abs() < 0.01, "{slope}");
    assert_eq!((uses.since_ns, uses.until_ns), (0, Some(300 * SECOND)));
}
