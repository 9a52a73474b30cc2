use insta::assert_snapshot;
use serde_json::json;

use super::*;

fn context() -> InstanceContext {
    InstanceContext {
        deployment: "demo".to_owned(),
        name: "master".to_owned(),
        index: 0,
        id: "11111111-2222-7333-8444-555555555555".to_owned(),
        az: None,
        bootstrap: true,
        address: "10.117.1.2".to_owned(),
        ip: "10.117.1.2".to_owned(),
        networks: json!({"default": {"ip": "10.117.1.2"}}),
    }
}

fn job(name: &str, templates: &[(&str, &str, &str)]) -> JobArchive {
    let map: serde_json::Map<String, Value> = templates
        .iter()
        .map(|(source, destination, _)| ((*source).to_owned(), json!(destination)))
        .collect();
    let spec = json!({"name": name, "templates": map}).to_string();
    let sources = templates
        .iter()
        .map(|(source, _, text)| ((*source).to_owned(), text.as_bytes().to_vec()))
        .collect();
    JobArchive::from_parts(name, spec.into_bytes(), sources, None).expect("a job")
}

fn links() -> BTreeMap<String, Link> {
    let member = |index, address: &str| LinkInstance {
        name: "master".to_owned(),
        index,
        id: format!("id-{index}"),
        az: Some("z1".to_owned()),
        address: address.to_owned(),
        bootstrap: index == 0,
    };
    BTreeMap::from([(
        "etcd".to_owned(),
        Link {
            instances: vec![member(0, "10.0.0.2"), member(1, "10.0.0.3")],
            properties: json!({"port": 2379}),
        },
    )])
}

fn properties() -> Value {
    json!({
        "tls": {"key": "-----BEGIN KEY-----\nMII\n-----END KEY-----\n"},
        "args": {"b": "x<y>&'z'", "a": [1, 2.5, true, null]},
        "big": u64::MAX,
        "nothing": null,
        "quote": "it's $(here)",
        "flag": false,
    })
}

fn render(text: &str) -> Result<String, String> {
    let job = job("web", &[("a.j2", "config/a", text)]);
    let input = JobInput {
        job: &job,
        properties: &properties(),
        links: &links(),
    };
    render_instance(&[input], &context())
        .map(|rendered| {
            let file = &rendered.jobs["web"].files["config/a"];
            String::from_utf8(file.bytes.expose().clone()).expect("UTF-8")
        })
        .map_err(|errors| errors.jobs[0].errors[0].to_string())
}

#[test]
fn templates_have_what_the_architecture_promises() {
    let check = |text: &str, expected: &str| assert_eq!(render(text).as_deref(), Ok(expected), "{text}");
    check(
        "{{ name }}-{{ index }} {{ deployment }} {{ job }} {{ ip }}\n",
        "master-0 demo web 10.117.1.2\n",
    );
    check(
        "{% if bootstrap %}{{ networks.default.ip }}{% endif %} {{ az or 'none' }}",
        "10.117.1.2 none",
    );
    check(
        "{{ p('big') }} {{ p('nothing', 7) }} {{ p(['nothing', 'flag']) }}",
        "18446744073709551615 7 false",
    );
    check(
        "{{ has_p('tls.key') }} {{ has_p('nothing') }} {{ has_p('tls.nope') }}",
        "true false false",
    );
    check("{% if p('nothing', none) is none %}none{% endif %}", "none");
    check(
        "{{ p('args') | tojson }}",
        r#"{"b": "x<y>&'z'", "a": [1, 2.5, true, null]}"#,
    );
    check("{% for k, v in p('args') | items %}{{ k }} {% endfor %}", "b a ");
    check(
        "key: |\n  {{ p('tls.key') | indent(2) }}",
        "key: |\n  -----BEGIN KEY-----\n  MII\n  -----END KEY-----",
    );
    check(
        "{{ 'a' | b64encode }} {{ p('quote') | shquote }}",
        r"YQ== 'it'\''s $(here)'",
    );
    check(
        "{% for i in link('etcd').instances %}{{ i.name }}-{{ i.index }}={{ i.address }}{% if not loop.last %},{% endif %}{% endfor %}:{{ link('etcd').properties.port }}",
        "master-0=10.0.0.2,master-1=10.0.0.3:2379",
    );
    check("{{ has_link('etcd') }} {{ has_link('x') }}", "true false");
    check("{{ address.split('.')[3] | int + 1 }}", "3");
    check("<&> 'not escaped' {{ '<&>' }}\n\n", "<&> 'not escaped' <&>\n\n");
}

#[test]
fn mistakes_in_templates_are_named_with_their_line() {
    let check = |text: &str, expected: &str| {
        assert_eq!(
            render(text),
            Err(format!("Error filling in template 'a.j2' ({expected})")),
            "{text}"
        );
    };
    check("a\nb\n{{ p('a.b') }}", r#"line 3: Can't find property '["a.b"]'"#);
    check(
        "{{ p('nothing') }}",
        r#"line 1: Can't find property '["nothing"]'"#,
    );
    check("\n{{ link('db') }}", "line 2: Can't find link 'db'");
    check("{{ az }}", "line 1: the value is null");
    let starts = |text: &str, expected: &str| {
        let error = render(text).expect_err(text);
        assert!(error.contains(expected), "{error}");
    };
    starts("{{ nowhere }}", "line 1: undefined value");
    starts("{{ link('etcd').nope }}", "line 1: undefined value");
    starts(
        "{{ p('args') | shquote }}",
        "line 1: cannot quote a value of kind map for a shell",
    );
}

#[test]
fn no_error_quotes_a_secret() {
    for text in [
        "{{ p('tls.key') | int }}",
        "{{ p('quote').nope() }}",
        "{{ [p('quote')] | sum }}",
        "{{ p('tls')[p('quote')].x }}",
    ] {
        if let Err(error) = render(text) {
            assert!(!error.contains("MII") && !error.contains("$(here)"), "{error}");
        }
    }
}

#[test]
fn errors_are_one_nested_list() {
    let api = job(
        "api",
        &[
            ("a.j2", "config/a", "{{ p('x.y') }}"),
            ("b.j2", "bin/b", "ok\n{{ link('z') }}"),
        ],
    );
    let fine = job("fine", &[("c", "config/c", "{{ p('not a template') }}")]);
    let web = job("web", &[("d.j2", "config/d", "{{ p('x') }}")]);
    let links = BTreeMap::new();
    let render = |jobs: &[&JobArchive], name: &str| {
        let context = InstanceContext {
            name: name.to_owned(),
            ..context()
        };
        let inputs: Vec<_> = jobs
            .iter()
            .map(|job| JobInput {
                job,
                properties: &Value::Null,
                links: &links,
            })
            .collect();
        render_instance(&inputs, &context).expect_err("it cannot be rendered")
    };
    let errors = DeploymentRenderErrors::new([
        render(&[&api, &fine, &web], "master"),
        render(&[&api, &fine, &web], "master"),
        render(&[&web], "worker"),
    ]);
    assert_snapshot!(errors.to_string(), @r#"
    Unable to render instance groups for deployment. Errors are:
      - Unable to render jobs for instance group 'master'. Errors are:
        - Unable to render templates for job 'api'. Errors are:
          - Error filling in template 'a.j2' (line 1: Can't find property '["x.y"]')
          - Error filling in template 'b.j2' (line 2: Can't find link 'z')
        - Unable to render templates for job 'web'. Errors are:
          - Error filling in template 'd.j2' (line 1: Can't find property '["x"]')
      - Unable to render jobs for instance group 'worker'. Errors are:
        - Unable to render templates for job 'web'. Errors are:
          - Error filling in template 'd.j2' (line 1: Can't find property '["x"]')
    "#);
}

#[test]
fn hashes_are_those_of_bosh_and_the_archive_is_repeatable() {
    let a = job(
        "a",
        &[("z.j2", "bin/z", "{{ index }}"), ("b", "config/b", "plain")],
    );
    let c = job("c", &[("x", "config/x", "C")]);
    let links = BTreeMap::new();
    let input = |job| JobInput {
        job,
        properties: &Value::Null,
        links: &links,
    };
    let rendered = render_instance(&[input(&c), input(&a)], &context()).expect("it renders");
    // rendered_job_instance.rb and rendered_job_template.rb of bosh: monit, name, then content and destination of each
    // template in the order of sources; jobs in the order of names.
    assert_eq!(
        rendered.configuration_hash,
        Algorithm::Sha1.hex(b"aplainconfig/b0bin/zcCconfig/x")
    );
    assert_eq!(
        rendered.template_hashes(),
        BTreeMap::from([
            ("a".to_owned(), Algorithm::Sha1.hex(b"plain0")),
            ("c".to_owned(), Algorithm::Sha1.hex(b"C")),
        ])
    );
    let packed = rendered.pack();
    let again = render_instance(&[input(&a), input(&c)], &context()).expect("it renders again");
    assert_eq!(packed.expose(), again.pack().expose());
    let dir = camino_tempfile::tempdir().expect("a directory");
    crate::tarball::unpack(
        "jobs",
        packed.expose().as_slice(),
        dir.path(),
        crate::tarball::Limits::JOB,
        crate::tarball::Owners::Caller,
    )
    .expect("it unpacks");
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: &str| {
        let meta = fs_err::metadata(dir.path().join(path)).expect(path);
        meta.permissions().mode() & 0o7777
    };
    assert_eq!(
        (mode("a/bin/z"), mode("a/config/b"), mode("c/config/x")),
        (0o750, 0o640, 0o640)
    );
    assert!(
        !format!("{rendered:?}").contains("plain"),
        "rendered content is not shown"
    );
}
