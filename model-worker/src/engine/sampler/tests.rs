use proptest::prelude::*;

use super::*;

fn sampler(params: Sampling) -> Sampler {
    Sampler::new(&params, None, &[], 7)
}

fn greedy() -> Sampling {
    Sampling { temperature: 0.0, ..Sampling::default() }
}

fn draw_one(sampler: &mut Sampler, logits: &[f32], position: u64) -> u32 {
    sampler.sample(&mut logits.to_vec(), position).unwrap().token
}

/// How often each token is drawn at `count` positions.
fn histogram(params: &Sampling, logits: &[f32], count: u32) -> Vec<u32> {
    let mut sampler = sampler(params.clone());
    let mut drawn = vec![0; logits.len()];
    for position in 0..count {
        drawn[draw_one(&mut sampler, logits, u64::from(position)) as usize] += 1;
    }
    drawn
}

/// The tokens that can be drawn at all.
fn support(params: Sampling, logits: &[f32]) -> Vec<usize> {
    let drawn = histogram(&params, logits, 2000);
    (0..logits.len()).filter(|token| drawn[*token] > 0).collect()
}

#[test]
fn greedy_takes_the_first_of_the_likeliest() {
    let mut logits = vec![0.0; 1000];
    for (last, first) in [(999, 998), (500, 17), (16, 15), (1, 0)] {
        logits[first] = 3.0;
        logits[last] = 3.0;
        assert_eq!(draw_one(&mut sampler(greedy()), &logits, 0), first as u32);
    }
}

#[test]
fn greedy_finds_the_likeliest_wherever_it_is() {
    for length in [1, 2, 15, 16, 17, 33, 100] {
        for likeliest in 0..length {
            let logits: Vec<f32> = (0..length).map(|i| if i == likeliest { -1.0 } else { -2.0 }).collect();
            assert_eq!(draw_one(&mut sampler(greedy()), &logits, 0), likeliest as u32);
        }
    }
}

#[test]
fn a_tiny_temperature_is_greedy_and_not_a_division_by_zero() {
    for temperature in [f32::MIN_POSITIVE, 1e-6, -1.0, f32::NAN] {
        let params = Sampling { temperature, ..Sampling::default() };
        assert_eq!(support(params, &[0.0, 1.0, 1.0]), [1]);
    }
}

#[test]
fn the_same_seed_draws_the_same_tokens_and_another_draws_others() {
    let logits = vec![0.0; 5000];
    let draws = |seed| -> Vec<u32> {
        let mut sampler = Sampler::new(&Sampling::default(), None, &[], seed);
        (0..20).map(|position| draw_one(&mut sampler, &logits, position)).collect()
    };
    assert_eq!(draws(1), draws(1));
    assert_ne!(draws(1), draws(2));
    // Independent of what was drawn before: the position alone counts.
    let mut late = Sampler::new(&Sampling::default(), None, &[], 1);
    assert_eq!(draw_one(&mut late, &logits, 19), draws(1)[19]);
}

#[test]
fn neighbouring_seeds_and_positions_draw_independent_numbers() {
    for (seed_step, position_step) in [(1, 0), (0, 1), (1, 1)] {
        let count = 20_000;
        let pairs = (0..count).map(|i| (uniform(i, i * 7), uniform(i + seed_step, i * 7 + position_step)));
        let covariance = pairs.map(|(a, b)| (a - 0.5) * (b - 0.5)).sum::<f64>() / count as f64;
        assert!(covariance.abs() < 4.0 / 12.0 / (count as f64).sqrt(), "{covariance}");
    }
}

#[test]
fn numbers_come_from_splitmix64() {
    // The first outputs of the reference implementation with seed 1234567.
    let gamma = 0x9E37_79B9_7F4A_7C15_u64;
    let outputs: Vec<u64> = (1..=3).map(|n| mix(gamma.wrapping_mul(n).wrapping_add(1_234_567))).collect();
    assert_eq!(outputs, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
}

#[test]
fn a_seed_draws_the_same_numbers_in_every_version() {
    // Answers are continued on other workers, perhaps of another version.
    let numbers = [uniform(0, 0), uniform(42, 1), uniform(u64::MAX, 1000)];
    assert_eq!(numbers, [0.28176129772258496, 0.34329192209867343, 0.7687220630181891]);
}

#[test]
fn tokens_are_drawn_as_often_as_they_are_likely() {
    let logits: Vec<f32> = (0..40).map(|i| (i as f32 * 0.7).sin() * 2.0).collect();
    let filters = Sampling { top_k: 30, min_p: 0.05, top_p: 0.95, ..Sampling::default() };
    let typical = Sampling { temperature: 1.3, typical_p: 0.6, ..Sampling::default() };
    let all = [(Sampling::default(), 1.0), (Sampling { temperature: 0.7, ..filters }, 0.7), (typical, 1.3)];
    for (params, temperature) in all {
        let kept = reference(&logits, &params);
        let weight = |token: &usize| (f64::from(logits[*token]) / temperature).exp();
        let total: f64 = kept.iter().map(weight).sum();
        let count = 50_000;
        let drawn = histogram(&params, &logits, count);
        assert_eq!(drawn.iter().filter(|times| **times > 0).count(), kept.len());
        let chi_square: f64 = kept
            .iter()
            .map(|token| {
                let expected = weight(token) / total * f64::from(count);
                (f64::from(drawn[*token]) - expected).powi(2) / expected
            })
            .sum();
        // Mean is kept - 1, variance twice that; this is about 5 standard deviations up.
        let freedom = kept.len() as f64 - 1.0;
        assert!(chi_square < freedom + 5.0 * (2.0 * freedom).sqrt(), "{chi_square} for {freedom}");
    }
}

#[test]
fn top_p_keeps_the_smallest_set_that_reaches_it() {
    let logits: Vec<f32> = [0.4_f32, 0.05, 0.3, 0.25].map(f32::ln).to_vec();
    let kept = |top_p| support(Sampling { top_p, ..Sampling::default() }, &logits);
    assert_eq!(kept(0.0), [0]);
    assert_eq!(kept(0.39), [0]);
    assert_eq!(kept(0.41), [0, 2]);
    assert_eq!(kept(0.69), [0, 2]);
    assert_eq!(kept(0.71), [0, 2, 3]);
    assert_eq!(kept(1.0), [0, 1, 2, 3]);
}

#[test]
fn top_p_finds_its_set_also_where_it_is_large() {
    let logits = vec![0.0; 2000]; // all alike: 1500 are needed, far more than are tried first
    let mut sampler = sampler(Sampling { top_p: 0.75, ..Sampling::default() });
    assert!(sampler.keep(&logits, Softmax::new(0.0, 1.0)));
    let mut kept: Vec<u32> = sampler.candidates.iter().map(|candidate| candidate.token).collect();
    kept.sort_unstable();
    assert_eq!(kept, (0..1500).collect::<Vec<_>>());
}

#[test]
fn top_k_and_min_p_keep_the_likeliest() {
    let logits = [1.0, 3.0, 2.0, 3.0, -1.0];
    let kept = |top_k, min_p| support(Sampling { top_k, min_p, ..Sampling::default() }, &logits);
    assert_eq!(kept(1, 0.0), [1]); // of equals the first
    assert_eq!(kept(2, 0.0), [1, 3]);
    assert_eq!(kept(3, 0.0), [1, 2, 3]);
    assert_eq!(kept(99, 0.0), [0, 1, 2, 3, 4]);
    assert_eq!(kept(0, 1.0), [1, 3]);
    assert_eq!(kept(0, 0.3), [1, 2, 3]); // exp(-1) = 0.37, exp(-2) = 0.14
    assert_eq!(kept(4, 0.3), [1, 2, 3]);
    assert_eq!(kept(0, f32::NAN), [0, 1, 2, 3, 4]);
}

#[test]
fn typical_p_keeps_what_is_about_as_surprising_as_is_to_be_expected() {
    // Entropy 1.37 nats; the surprises are 0.69, 1.90, 1.90, 2.30, 3.00 and 4.61: the likeliest is not the most typical.
    let logits: Vec<f32> = [0.5_f32, 0.15, 0.15, 0.1, 0.05, 0.05].map(f32::ln).to_vec();
    let kept = |typical_p| support(Sampling { typical_p, ..Sampling::default() }, &logits);
    assert_eq!(kept(0.001), [1]); // of equals the first
    assert_eq!(kept(0.16), [1, 2]);
    assert_eq!(kept(0.31), [0, 1, 2]);
    assert_eq!(kept(0.81), [0, 1, 2, 3]);
    assert_eq!(kept(0.97), [0, 1, 2, 3, 4, 5]);
    for off in [1.0, 0.0, -1.0, 2.0, f32::NAN] {
        assert_eq!(kept(off).len(), 6);
    }
}

#[test]
fn typical_p_sees_what_the_other_filters_have_left() {
    let logits: Vec<f32> = [0.5_f32, 0.15, 0.15, 0.1, 0.05, 0.05].map(f32::ln).to_vec();
    // Of 0.5 and twice 0.15 the entropy is 0.96: from there 0.5 is at 0.47 and 0.15 at 0.73 to either side.
    let params = Sampling { top_k: 3, typical_p: 0.3, ..Sampling::default() };
    assert_eq!(support(params, &logits), [0]);
}

#[test]
fn typical_p_finds_its_set_in_rows_of_every_shape() {
    let spread = |scale: f32| (0..5000).map(|i| (i as f32 * 0.37).sin() * scale).collect::<Vec<f32>>();
    let mut sure = vec![-30.0; 5000];
    sure[4321] = 5.0;
    let mut banned = spread(3.0);
    banned[..4000].fill(f32::NEG_INFINITY);
    let rows = [vec![0.0; 5000], spread(0.01), spread(1.0), spread(50.0), spread(1000.0), sure, banned];
    for (logits, typical_p) in rows.iter().flat_map(|row| [0.05, 0.5, 0.95, 0.9999].map(|p| (row, p))) {
        let params = Sampling { typical_p, ..Sampling::default() };
        let mut sampler = sampler(params.clone());
        let softmax = Softmax::new(select::maximum(logits), 1.0);
        assert!(sampler.keep(logits, softmax));
        let mass = select::mass(&sampler.candidates) / softmax.sum(logits);
        assert!(mass >= f64::from(typical_p) - 1e-5, "{mass} for {typical_p}");
        // Which one is the last, rounding may decide.
        let (kept, right) = (sampler.candidates.len(), reference(logits, &params).len());
        assert!(kept.abs_diff(right) <= 1, "{kept} and not {right} for {typical_p}");
    }
}

#[test]
fn a_forbidden_token_is_not_chosen_before_its_position() {
    for params in [greedy(), Sampling { logit_bias: vec![(1, 100.0)], ..Sampling::default() }] {
        let mut sampler = sampler(params).forbidding(vec![1, 99].into(), 12);
        let logits = [0.0, 40.0, 1.0];
        assert!((0..12).all(|position| draw_one(&mut sampler, &logits, position) != 1));
        assert!((12..24).all(|position| draw_one(&mut sampler, &logits, position) == 1));
        let nothing = sampler.sample_masked(&mut logits.clone(), 11, Some(&[0b10]));
        assert_eq!(nothing, Err(SampleError::NothingAllowed));
    }
}

#[test]
fn repetition_penalty_counts_prompt_and_answer() {
    let params = Sampling { repetition_penalty: 2.0, ..greedy() };
    let mut sampler = Sampler::new(&params, None, &[0, 99], 0);
    let mut logits = vec![4.0, 3.0, -1.0];
    assert_eq!(sampler.sample(&mut logits, 0).unwrap().token, 1);
    assert_eq!(logits, [2.0, 3.0, -1.0]);
    sampler.accept(2);
    let mut logits = vec![4.0, 3.0, -1.0];
    assert_eq!(sampler.sample(&mut logits, 0).unwrap().token, 0);
    assert_eq!(logits, [2.0, 1.5, -2.0]);
}

#[test]
fn presence_and_frequency_penalties_count_the_answer_only() {
    let params = Sampling { presence_penalty: 1.0, frequency_penalty: 0.25, ..greedy() };
    let mut sampler = Sampler::new(&params, None, &[1], 0);
    for token in [2, 2, 0] {
        sampler.accept(token);
    }
    let mut logits = vec![0.0, 0.0, 0.0, -9.0];
    assert_eq!(sampler.sample(&mut logits, 0).unwrap().token, 1);
    assert_eq!(logits, [-1.25, 0.0, -1.5, -9.0]);
    let mut logits = vec![0.0; 4]; // the token just drawn has counted itself
    sampler.sample(&mut logits, 0).unwrap();
    assert_eq!(logits[1], -1.25);
}

#[test]
fn a_resumed_sampler_goes_on_like_the_first() {
    let params = Sampling { repetition_penalty: 1.3, frequency_penalty: 0.5, ..Sampling::default() };
    let logits: Vec<f32> = (0..50).map(|i| (i as f32).cos()).collect();
    let mut first = Sampler::new(&params, None, &[3], 5);
    let answer: Vec<u32> = (0..30).map(|position| draw_one(&mut first, &logits, position)).collect();
    let mut second = Sampler::new(&params, None, &[3], 5);
    answer[..20].iter().for_each(|token| second.accept(*token));
    let rest: Vec<u32> = (20..30).map(|position| draw_one(&mut second, &logits, position)).collect();
    assert_eq!(rest, answer[20..]);
}

#[test]
fn bias_forces_and_bans() {
    let logits = [0.0, 5.0, 1.0];
    let with = |logit_bias| support(Sampling { logit_bias, ..Sampling::default() }, &logits);
    assert_eq!(with(vec![(2, 100.0)]), [2]);
    assert_eq!(with(vec![(1, -100.0), (77, 100.0)]), [0, 2]); // there is no token 77
}

#[test]
fn a_mask_leaves_only_what_it_allows() {
    let logits = vec![0.0; 70];
    let mut sampler = sampler(Sampling::default());
    let mut masked = |mask: &[u32]| {
        let mut drawn: Vec<u32> = (0..2000)
            .map(|position| sampler.sample_masked(&mut logits.clone(), position, Some(mask)).unwrap().token)
            .collect();
        drawn.sort_unstable();
        drawn.dedup();
        drawn
    };
    assert_eq!(masked(&[0b1010, 1, 1 << 5]), [1, 3, 32, 69]);
    assert_eq!(masked(&[u32::MAX]), (0..32).collect::<Vec<_>>()); // past its end nothing is allowed
    let nothing = sampler.sample_masked(&mut logits.clone(), 0, Some(&[]));
    assert_eq!(nothing, Err(SampleError::NothingAllowed));
}

#[test]
fn logprobs_come_from_the_untouched_logits() {
    let logits: Vec<f32> = [0.1_f32, 0.6, 0.3].map(|p| p.ln() + 5.0).to_vec();
    let params = Sampling { logit_bias: vec![(0, 50.0)], temperature: 0.2, ..Sampling::default() };
    let mut sampler = Sampler::new(&params, Some(2), &[], 0);
    let logprobs = sampler.sample(&mut logits.clone(), 0).unwrap().logprobs.unwrap();
    let close = |(token, logprob): (u32, f32), (right, p): (u32, f32)| {
        assert_eq!(token, right);
        assert!((logprob.exp() - p).abs() < 1e-6, "{logprob}");
    };
    close(logprobs.chosen, (0, 0.1));
    assert_eq!(logprobs.top.len(), 2);
    close(logprobs.top[0], (1, 0.6));
    close(logprobs.top[1], (2, 0.3));
}

#[test]
fn logprobs_are_as_many_as_asked_for_and_always_numbers() {
    let count =
        |logprobs| Sampler::new(&greedy(), logprobs, &[], 0).sample(&mut [0.0, f32::INFINITY, -1.0], 0).unwrap();
    assert_eq!(count(None).logprobs, None);
    assert_eq!(count(Some(0)).logprobs.unwrap(), Logprobs { chosen: (1, 0.0), top: vec![] });
    assert_eq!(count(Some(9)).logprobs.unwrap().top, [(1, 0.0), (0, LEAST_LOGPROB), (2, LEAST_LOGPROB)]);
}

#[test]
fn a_row_without_a_number_is_an_error() {
    for logits in [&mut [][..], &mut [f32::NAN; 3], &mut [f32::NEG_INFINITY; 3], &mut [f32::INFINITY]] {
        assert_eq!(sampler(greedy()).sample(logits, 0), Err(SampleError::NoFinite));
    }
}

#[test]
fn single_broken_logits_do_no_harm() {
    let logits = [f32::NAN, 1.0, f32::NEG_INFINITY, 1.0, f32::NAN];
    for top_p in [1.0, 0.99] {
        assert_eq!(support(Sampling { top_p, ..Sampling::default() }, &logits), [1, 3]);
    }
    assert_eq!(support(Sampling::default(), &[0.0, f32::INFINITY]), [1]);
}

/// What the filters keep, by sorting everything in double precision.
fn reference(logits: &[f32], params: &Sampling) -> Vec<usize> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |token: usize| (f64::from(logits[token] - max) / f64::from(params.temperature)).exp();
    let mut kept: Vec<usize> = (0..logits.len()).collect();
    kept.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    if params.top_k > 0 {
        kept.truncate(params.top_k as usize);
    }
    kept.retain(|token| weight(*token) >= f64::from(params.min_p));
    let target = kept.iter().map(|token| weight(*token)).sum::<f64>() * f64::from(params.top_p);
    let mut reached = 0.0;
    let enough = kept.iter().position(|token| {
        reached += weight(*token);
        params.top_p < 1.0 && reached >= target
    });
    kept.truncate(enough.map_or(kept.len(), |last| last + 1));
    if params.typical_p < 1.0 {
        keep_typical(&mut kept, logits, weight, f64::from(params.typical_p));
    }
    kept.sort_unstable();
    kept
}

/// By the paper's words: probabilities, surprise, entropy. Among equals the first in `kept`.
fn keep_typical(kept: &mut Vec<usize>, logits: &[f32], weight: impl Fn(usize) -> f64, p: f64) {
    kept.retain(|token| weight(*token) > f64::MIN_POSITIVE * 1e6); // far from where quotients become 0
    let total: f64 = kept.iter().map(|token| weight(*token)).sum();
    let surprise = |token: usize| -(weight(token) / total).ln();
    let entropy: f64 = kept.iter().map(|token| weight(*token) / total * surprise(*token)).sum();
    let distance = |token: usize| (surprise(token) - entropy).abs();
    // Equal logits have equal distances, whatever rounding makes of them.
    kept.sort_by(|a, b| match logits[*a] == logits[*b] {
        true => std::cmp::Ordering::Equal,
        false => distance(*a).total_cmp(&distance(*b)),
    });
    let mut reached = 0.0;
    let enough = kept.iter().position(|token| {
        reached += weight(*token) / total;
        reached >= p
    });
    kept.truncate(enough.map_or(kept.len(), |last| last + 1));
}

fn logits() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![-4.0..4.0_f32, (-3..3_i8).prop_map(f32::from)];
    prop_oneof![prop::collection::vec(logit, 1..80), prop::collection::vec(-1.0..1.0_f32, 300..1500)]
}

fn params() -> impl Strategy<Value = Sampling> {
    let off_or = |range: std::ops::Range<f32>, off: f32| prop_oneof![Just(off), range];
    let typical_p = off_or(0.01..1.0, 1.0);
    (0.1..3.0_f32, off_or(0.0..1.0, 1.0), prop_oneof![Just(0), 1..100_u32], off_or(0.0..1.0, 0.0), typical_p).prop_map(
        |(temperature, top_p, top_k, min_p, typical_p)| Sampling {
            temperature,
            top_p,
            top_k,
            min_p,
            typical_p,
            ..Sampling::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_fast_filters_keep_what_sorting_everything_keeps(logits in logits(), params in params()) {
        // A boundary that rounding can move is nobody's mistake: skip where a hair more or less changes the set.
        let right = reference(&logits, &params);
        for factor in [1.0 - 1e-5, 1.0 + 1e-5] {
            let min_p = params.min_p * factor;
            let top_p = if params.top_p < 1.0 { params.top_p * factor } else { 1.0 };
            let typical_p = if params.typical_p < 1.0 { (params.typical_p * factor).min(0.99999) } else { 1.0 };
            prop_assume!(reference(&logits, &Sampling { min_p, top_p, typical_p, ..params.clone() }) == right);
        }
        let mut sampler = sampler(params.clone());
        let softmax = Softmax::new(select::maximum(&logits), params.temperature);
        let kept = if sampler.keep(&logits, softmax) {
            let mut kept: Vec<usize> = sampler.candidates.iter().map(|candidate| candidate.token as usize).collect();
            kept.sort_unstable();
            kept
        } else {
            (0..logits.len()).collect()
        };
        prop_assert_eq!(kept, right);
    }

    #[test]
    fn a_draw_is_where_the_running_sum_passes_the_number(logits in logits(), params in params(), u in 0.0..1.0_f64) {
        let mut sampler = sampler(params.clone());
        let token = sampler.choose(&logits, u).unwrap() as usize;
        let kept: Vec<usize> = match sampler.candidates.is_empty() {
            true => (0..logits.len()).collect(),
            false => sampler.candidates.iter().map(|candidate| candidate.token as usize).collect(),
        };
        let weight = |token: &usize| (f64::from(logits[*token]) / f64::from(params.temperature)).exp();
        let total: f64 = kept.iter().map(weight).sum();
        let before: f64 = kept.iter().take_while(|kept| **kept != token).map(weight).sum();
        prop_assert!(before / total <= u + 1e-6);
        prop_assert!((before + weight(&token)) / total >= u - 1e-6);
    }

    #[test]
    fn selection_equals_sorting(logits in logits(), k in 0..100_usize) {
        let mut best = Vec::new();
        select::top(&logits, k, &mut best);
        best.sort_unstable_by(Candidate::likelier_first);
        let mut sorted: Vec<usize> = (0..logits.len()).collect();
        sorted.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        sorted.truncate(k);
        prop_assert_eq!(best.iter().map(|best| best.token as usize).collect::<Vec<_>>(), sorted);
    }

    #[test]
    fn no_row_of_numbers_breaks_a_sampler(
        mut logits in prop::collection::vec(any::<f32>(), 1..100),
        (temperature, top_p, min_p, penalty, typical_p) in any::<(f32, f32, f32, f32, f32)>(),
        (top_k, top, position) in any::<(u32, u32, u64)>(),
    ) {
        let params = Sampling {
            temperature, top_p, top_k, min_p, typical_p, repetition_penalty: penalty, frequency_penalty: penalty,
            logit_bias: vec![(0, penalty)], ..Sampling::default()
        };
        let finite = logits.iter().any(|logit| logit.is_finite());
        let sampled = Sampler::new(&params, Some(top), &[0, 1], 3).sample(&mut logits, position);
        prop_assert_eq!(sampled == Err(SampleError::NoFinite), !finite);
        if let Ok(Sampled { token, logprobs }) = sampled {
            prop_assert!((token as usize) < logits.len());
            prop_assert!(logprobs.unwrap().top.iter().all(|(_, logprob)| logprob.is_finite()));
        }
    }
}
