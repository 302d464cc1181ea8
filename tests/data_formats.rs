//! Language identification and alarms on real text.
use sdrrl::data::{alarms, language_id::contradicts};

/// Real sentences, where the machine has them: `SDRRL_FLORES=DIR` with dev.en, dev.es ... Prints the rates quoted in `language_id`.
#[test]
#[ignore = "needs FLORES files: SDRRL_FLORES=DIR"]
fn language_check_on_flores() {
    let dir = std::env::var("SDRRL_FLORES").expect("SDRRL_FLORES");
    let read = |l: &str| std::fs::read_to_string(format!("{dir}/dev.{l}")).unwrap();
    for (is, said) in [
        ("en", "en"),
        ("es", "es"),
        ("cs", "cs"),
        ("ja", "ja"),
        ("th", "th"),
        ("en", "es"),
        ("en", "cs"),
        ("en", "th"),
        ("es", "en"),
        ("es", "pt"),
        ("cs", "pl"),
        ("ja", "zh"),
    ] {
        for letters in [20, 30, 40, 60, 1000] {
            let text = read(is);
            let cut: Vec<String> = text.lines().map(|l| l.chars().take(letters).collect()).collect();
            let fires = cut.iter().filter(|l| contradicts(l, said, &["en"]).is_some()).count();
            println!("text {is} said to be {said}, {letters} characters: {fires} of {}", cut.len());
        }
    }
    let sources = read("en");
    for l in ["es", "cs", "ja", "th"] {
        let targets = read(l);
        let mut counts = std::collections::BTreeMap::new();
        for (s, t) in sources.lines().zip(targets.lines()) {
            for alarm in alarms::translation_alarms(s, t, "en", l) {
                *counts.entry(alarm).or_insert(0) += 1;
            }
        }
        let mut ratios: Vec<f64> =
            sources.lines().zip(targets.lines()).map(|(s, t)| alarms::length_ratio(s, t)).collect();
        ratios.sort_by(f64::total_cmp);
        println!(
            "{l}: {counts:?} ratio min {:.2} median {:.2} max {:.2}",
            ratios[0], ratios[498], ratios[996]
        );
        let shifted = sources
            .lines()
            .skip(1)
            .zip(targets.lines())
            .filter(|(s, t)| !alarms::translation_alarms(s, t, "en", l).is_empty())
            .count();
        println!("{l}: {shifted} of 996 shifted pairs alarmed");
    }
}
