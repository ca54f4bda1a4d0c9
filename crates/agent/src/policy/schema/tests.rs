//! Texts of policies: what is read, and all that is wrong with those that are not.

use proptest::prelude::*;

use super::*;

const HEAD: &str = "apiVersion: access.towline.io/v1alpha1\nkind: AgentPolicy\n";

fn read_rest(rest: &str) -> Result<Checked, Mistakes> {
    read(&format!("{HEAD}{rest}"))
}

#[test]
fn a_whole_policy_is_read_and_told_in_plain_words() {
    let checked = read_rest(
        r#"
preset: edit
closed: false
users: [alice, "team-*"]
groups: [dev]
roles: [view, edit]
namespaces: {allow: [team-a, "team-b-*"], deny: [kube-system], clusterScoped: [nodes, namespaces]}
verbs: {allow: [get, list, watch], deny: [deletecollection]}
resources: {allow: [pods, deployments.apps, pods/log, "*.batch"], deny: [secrets]}
nonResourceURLs: [/metrics]
hours: {timeZone: Europe/Berlin, days: [Mon, Tue], from: "08:00", to: 18:00}
"#,
    )
    .unwrap();
    assert_eq!(checked.warnings, Vec::<String>::new());
    let told = checked.policy.sentences();
    assert_eq!(
        told,
        [
            "preset edit: everything but RBAC, webhooks, APIServices, tokens, certificates and proxying",
            "only users alice, team-* and members of groups dev; other groups are left out",
            "of the hub's roles only view, edit are believed",
            "only namespaces team-a, team-b-*",
            "no namespaces kube-system",
            "without a namespace only nodes, namespaces",
            "only verbs get, list, watch",
            "no verbs deletecollection",
            "only resources pods, deployments.apps, pods/log, *.batch",
            "no resources secrets",
            "also the paths /metrics",
            "open Mon Tue from 08:00 to 18:00, Europe/Berlin time",
        ]
    );
}

#[test]
fn the_least_policy_is_a_preset_and_json_is_yaml() {
    for preset in Preset::ALL {
        assert_eq!(read_rest(&format!("preset: {preset}\n")).unwrap().policy, Policy::of(preset));
    }
    let json =
        r#"{"apiVersion":"access.towline.io/v1alpha1","kind":"AgentPolicy","preset":"edit","closed":true}"#;
    assert!(read(json).unwrap().policy.is_closed());
}

#[test]
fn all_mistakes_are_told_at_once_with_their_lines() {
    let mistakes = read(
        r#"apiVersion: v1
kind: AgentPolicy
presett: edit
preset: edti
closed: yes
closed: true
users: alice
groups: ["a*b*c", 7]
roles: [root]
verbs: {allow: [list, wach], alow: []}
resources: {deny: [Pod]}
nonResourceURLs: [metrics]
hours: {timeZone: Berlin, days: [Monday], from: 8:00}
"#,
    )
    .unwrap_err();
    let text = mistakes.0.join("\n");
    for (line, what) in [
        (1, "apiVersion has to be access.towline.io/v1alpha1"),
        (3, "no key \"presett\"; did you mean preset?"),
        (4, "preset \"edti\" is none of view, no-exec, edit, admin; did you mean edit?"),
        (5, "closed has to be true or false"),
        (6, "the key closed is there twice"),
        (7, "users has to be a list"),
        (8, "more than one \"*\""),
        (8, "write it in quotes"),
        (9, "\"root\" is none of admin, edit, view"),
        (10, "did you mean watch?"),
        (10, "no key \"alow\"; did you mean allow?"),
        (11, "\"Pod\" is no resource in kubectl's spelling"),
        (12, "\"metrics\" is no path"),
        (13, "\"Berlin\" is not in the IANA time zone database"),
        (13, "\"Monday\" is none of Mon"),
        (13, "\"8:00\" is no time of day"),
        (13, "the key to is missing"),
    ] {
        let found = mistakes
            .0
            .iter()
            .any(|mistake| mistake.starts_with(&format!("line {line}, column ")) && mistake.contains(what));
        assert!(found, "line {line}: {what}\n{text}");
    }
    assert_eq!(mistakes.0.len(), 17, "{text}");
}

#[test]
fn what_is_no_policy_is_refused() {
    let bomb = format!("{HEAD}preset: edit\nusers: &a [x]\ngroups: *a\n");
    let merged = format!("{HEAD}preset: edit\n<<: {{closed: true}}\n");
    let two = format!("{HEAD}preset: edit\n---\n{HEAD}preset: admin\n");
    let deep = format!("{HEAD}preset: {}{}\n", "[".repeat(100), "]".repeat(100));
    let large = format!("{HEAD}preset: edit\n#{}\n", "x".repeat(MAX_POLICY));
    let many = format!("{HEAD}preset: edit\nusers: [{}]\n", "a,".repeat(MAX_ENTRIES + 1));
    let long = format!("{HEAD}preset: edit\nusers: [{}]\n", "a".repeat(MAX_TEXT + 1));
    for (text, why) in [
        ("", "has to be a map"),
        ("preset", "has to be a map"),
        ("- a", "has to be a map"),
        ("preset: edit", "apiVersion is missing"),
        ("\u{0}", ""),
        ("a: [", ""),
        (&bomb, ""),
        (&merged, ""),
        (&two, ""),
        (&deep, ""),
        (&large, "at most 262144 are read"),
        (&many, "1001 entries"),
        (&long, "longer than 1024 bytes"),
    ] {
        let mistakes = read(text).expect_err(&api::status::printable(text, 80));
        assert!(mistakes.to_string().contains(why), "{mistakes}");
        assert!(mistakes.0.iter().all(|mistake| mistake.len() < 700));
    }
}

#[test]
fn a_slip_of_the_pen_is_a_warning_where_it_could_be_meant() {
    let checked = read_rest(
        "preset: edit\ngroups: [system:master]\nresources: {deny: [secret]}\n\
         namespaces: {deny: [kube-sytem], clusterScoped: [\"*\"]}\n",
    )
    .unwrap();
    let text = checked.warnings.join("\n");
    for part in
        ["\"system:masters\"", "\"secret\" looks like \"secrets\"", "kube-system", "over all namespaces"]
    {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn an_empty_value_is_a_mistake_and_an_empty_list_is_nobody() {
    assert!(read_rest("preset: edit\nusers:\n").is_err());
    assert!(read_rest("preset: edit\nhours: {}\n").is_err());
    assert!(read_rest("preset:\n").is_err());
    assert_eq!(read_rest("preset: edit\nusers: []\n").unwrap().policy.users, Some(vec![]));
}

proptest! {
    #[test]
    fn reading_any_text_does_not_panic(text in "\\PC{0,200}", lines in "([a-z]{1,9}: ?[\\[\\]{}&*!|>'\"%@#a-z0-9:, -]{0,20}\n){0,8}") {
        let _ = read(&text);
        let _ = read_rest(&format!("preset: edit\n{lines}"));
    }
}
