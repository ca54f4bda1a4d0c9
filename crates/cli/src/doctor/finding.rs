//! What the doctor found: a check, how bad it is, a code, a sentence, a remedy; and its two forms. Pure.

use serde_json::{Value, json};

use super::codes::Code;
use crate::output::{Mood, colored, shown};

/// How bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// Works, or cannot be judged.
    Warn,
    /// Does not work.
    Fail,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What was looked at.
    pub(crate) check: &'static str,
    /// How bad.
    pub(crate) level: Level,
    /// The reason, the doctor's own or the agent's; none if all is well.
    pub(crate) code: Option<String>,
    /// What was found.
    pub(crate) message: String,
    /// One sentence: what to do.
    pub(crate) remedy: String,
}

impl Finding {
    /// All is well.
    pub(crate) fn ok(check: &'static str, message: impl AsRef<str>) -> Self {
        Self { check, level: Level::Ok, code: None, message: shown(message.as_ref()), remedy: String::new() }
    }

    /// Works all the same, or cannot be judged.
    pub(crate) fn warn(check: &'static str, code: Code, message: impl AsRef<str>) -> Self {
        Self::of(check, Level::Warn, code, message.as_ref())
    }

    /// Does not work.
    pub(crate) fn fail(check: &'static str, code: Code, message: impl AsRef<str>) -> Self {
        Self::of(check, Level::Fail, code, message.as_ref())
    }

    /// Not judged, because of `cause`.
    pub(crate) fn skipped(check: &'static str, cause: &str) -> Self {
        Self::warn(check, Code::Skipped, format!("not tried: {cause}"))
    }

    fn of(check: &'static str, level: Level, code: Code, message: &str) -> Self {
        Self {
            check,
            level,
            code: Some(code.as_str().to_owned()),
            message: shown(message),
            remedy: code.remedy().to_owned(),
        }
    }

    /// One or two lines for a person.
    pub(crate) fn line(&self, color: bool) -> String {
        let (word, mood) = match self.level {
            Level::Ok => ("ok  ", Mood::Good),
            Level::Warn => ("warn", Mood::Unclear),
            Level::Fail => ("fail", Mood::Bad),
        };
        let code = self.code.as_ref().map(|code| format!("{code} ")).unwrap_or_default();
        let mut text = format!("{}  {:<18} {code}{}\n", colored(word, mood, color), self.check, self.message);
        if self.level != Level::Ok {
            text.push_str(&format!("{:<24} {}\n", "", self.remedy));
        }
        text
    }

    fn value(&self) -> Value {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "fail",
        };
        json!({ "check": self.check, "level": level, "code": self.code, "message": self.message, "remedy": self.remedy })
    }
}

/// Whether nothing fails.
pub(crate) fn healthy(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.level != Level::Fail)
}

/// For machines.
pub(crate) fn document(findings: &[Finding]) -> Value {
    json!({ "healthy": healthy(findings), "findings": findings.iter().map(Finding::value).collect::<Vec<_>>() })
}

/// The worst of several, under one name; the first of the worst.
pub(crate) fn worst(check: &'static str, findings: &[Finding], well: impl AsRef<str>) -> Finding {
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    match findings.iter().find(|finding| finding.level == worst) {
        Some(found) if worst != Level::Ok => Finding { check, ..found.clone() },
        Some(_) | None => Finding::ok(check, well),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_reads_as_a_line_with_its_remedy_below() {
        let ok = Finding::ok("dns", "10.0.0.1");
        assert_eq!(ok.line(false), "ok    dns                10.0.0.1\n");
        let fail = Finding::fail("tcp", Code::Tcp, "refused").line(false);
        assert!(fail.starts_with("fail  tcp                TWL-D006 refused\n   "), "{fail}");
        assert_eq!(fail.lines().count(), 2);
        assert!(Finding::fail("tcp", Code::Tcp, "x").line(true).starts_with("\u{1b}[31mfail"));
    }

    #[test]
    fn one_failure_makes_it_unhealthy_and_a_warning_does_not() {
        let mut findings = vec![Finding::ok("a", "x"), Finding::warn("b", Code::Hidden, "x")];
        assert_eq!(document(&findings)["healthy"], true);
        findings.push(Finding::fail("c", Code::Dns, "x"));
        let document = document(&findings);
        assert_eq!(document["healthy"], false);
        assert_eq!(document["findings"][2]["code"], "TWL-D005");
        assert_eq!(document["findings"][0]["code"], Value::Null);
    }

    #[test]
    fn the_worst_of_several_is_told() {
        let findings = [
            Finding::warn("a", Code::Slow, "slow"),
            Finding::fail("b", Code::Tcp, "gone"),
            Finding::ok("c", ""),
        ];
        assert_eq!(worst("gateway", &findings, "").message, "gone");
        assert_eq!(worst("gateway", &findings[2..], "well"), Finding::ok("gateway", "well"));
    }

    #[test]
    fn what_other_sides_say_does_not_reach_the_terminal() {
        assert!(!Finding::fail("a", Code::Tcp, "\u{1b}[2J\nok").line(false).contains('\u{1b}'));
    }
}
