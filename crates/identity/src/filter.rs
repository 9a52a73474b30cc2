//! SCIM's filters (RFC 7644, section 3.4.2.2), as UAA takes them: `userName eq "admin" and origin eq "uaa"`.
//!
//! Attributes and operators are read without regard to case, and so are texts compared. An attribute that is not known is refused, as
//! UAA refuses it: whoever mistypes one would otherwise take an empty list for an answer.

use std::cmp::Ordering;

/// The longest filter, in bytes: 64 names at least.
const LONGEST: usize = 16 * 1024;
/// How deep brackets and `not` may go.
const DEEPEST: usize = 16;
/// How many comparisons there may be.
const MOST: usize = 256;
/// What may be before an attribute's name.
const SCHEMAS: [&str; 2] = [
    "urn:scim:schemas:core:1.0:",
    "urn:ietf:params:scim:schemas:core:2.0:user:",
];

/// A value of an attribute, and one in a filter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Number(i64),
    Truth(bool),
    /// A time in milliseconds; in a filter it is a text.
    Time(i64),
    Nothing,
}

/// What is filtered.
pub(crate) trait Resource {
    /// The names of its attributes in lower case.
    const ATTRIBUTES: &'static [&'static str];

    /// All values of one of them.
    fn values(&self, attribute: &str) -> Vec<Value>;
}

/// A filter that has been read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Filter {
    And(Vec<Filter>),
    Or(Vec<Filter>),
    Not(Box<Filter>),
    Present(String),
    Compare(String, Operator, Value),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Equal,
    NotEqual,
    Contains,
    StartsWith,
    EndsWith,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

impl Filter {
    /// Reads a filter about `R`.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub(crate) fn parse<R: Resource>(text: &str) -> Result<Self, String> {
        if text.len() > LONGEST {
            return Err(format!("the filter is longer than {LONGEST} bytes"));
        }
        let tokens = tokens(text)?;
        let mut parser = Parser {
            tokens: &tokens,
            at: 0,
            comparisons: 0,
            attributes: R::ATTRIBUTES,
        };
        let filter = parser.or(0)?;
        match parser.next() {
            None => Ok(filter),
            Some(token) => Err(format!("the filter goes on with {token} where it should end")),
        }
    }

    /// Whether it lets a resource through.
    pub(crate) fn fits(&self, resource: &impl Resource) -> bool {
        match self {
            Self::And(all) => all.iter().all(|one| one.fits(resource)),
            Self::Or(all) => all.iter().any(|one| one.fits(resource)),
            Self::Not(one) => !one.fits(resource),
            Self::Present(attribute) => {
                let values = resource.values(attribute);
                values
                    .iter()
                    .any(|value| !matches!(value, Value::Nothing) && *value != Value::Text(String::new()))
            }
            // Of several values one that fits is enough; none is unequal to all.
            Self::Compare(attribute, Operator::NotEqual, wanted) => !resource
                .values(attribute)
                .iter()
                .any(|value| compare(value, Operator::Equal, wanted)),
            Self::Compare(attribute, operator, wanted) => resource
                .values(attribute)
                .iter()
                .any(|value| compare(value, *operator, wanted)),
        }
    }

    /// The text that an attribute has to be equal to, whatever else is asked for: what an index can find.
    pub(crate) fn has_to_be(&self, attribute: &str) -> Option<&str> {
        match self {
            Self::Compare(own, Operator::Equal, Value::Text(text)) if own == attribute => Some(text),
            Self::And(all) => all.iter().find_map(|one| one.has_to_be(attribute)),
            _ => None,
        }
    }
}

fn compare(value: &Value, operator: Operator, wanted: &Value) -> bool {
    let order = match (value, wanted) {
        (Value::Text(value), Value::Text(wanted)) => {
            let (value, wanted) = (value.to_lowercase(), wanted.to_lowercase());
            match operator {
                Operator::Contains => return value.contains(&wanted),
                Operator::StartsWith => return value.starts_with(&wanted),
                Operator::EndsWith => return value.ends_with(&wanted),
                _ => value.cmp(&wanted),
            }
        }
        (Value::Time(value), Value::Text(wanted)) => match wanted.parse::<jiff::Timestamp>() {
            Ok(wanted) => value.cmp(&wanted.as_millisecond()),
            Err(_) => return false,
        },
        (Value::Number(value), Value::Number(wanted)) => value.cmp(wanted),
        // As texts, because `active eq "true"` is sent too.
        (Value::Truth(value), Value::Text(wanted)) => {
            return operator == Operator::Equal && wanted.eq_ignore_ascii_case(&value.to_string());
        }
        (Value::Truth(value), Value::Truth(wanted)) => {
            return operator == Operator::Equal && value == wanted;
        }
        (Value::Nothing, Value::Nothing) => return operator == Operator::Equal,
        _ => return false,
    };
    match operator {
        Operator::Equal => order == Ordering::Equal,
        Operator::Greater => order == Ordering::Greater,
        Operator::GreaterOrEqual => order != Ordering::Less,
        Operator::Less => order == Ordering::Less,
        Operator::LessOrEqual => order != Ordering::Greater,
        Operator::NotEqual => order != Ordering::Equal,
        Operator::Contains | Operator::StartsWith | Operator::EndsWith => false,
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Open,
    Close,
    Word(String),
    Text(String),
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open => f.write_str("`(`"),
            Self::Close => f.write_str("`)`"),
            Self::Word(word) => write!(f, "`{}`", crate::names::shortened(word)),
            Self::Text(text) => write!(f, "the text `{}`", crate::names::shortened(text)),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, after) = match first {
            '(' => (Token::Open, &rest[1..]),
            ')' => (Token::Close, &rest[1..]),
            '"' => quoted(rest)?,
            _ => {
                let end = rest
                    .find(|c: char| c.is_whitespace() || "()\"".contains(c))
                    .unwrap_or(rest.len());
                (Token::Word(rest[..end].to_owned()), &rest[end..])
            }
        };
        tokens.push(token);
        rest = after.trim_start();
    }
    Ok(tokens)
}

/// A text in quotes, with the escapes of JSON.
fn quoted(text: &str) -> Result<(Token, &str), String> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => {
                let (quoted, rest) = text.split_at(at + 1);
                return serde_json::from_str(quoted)
                    .map(|text| (Token::Text(text), rest))
                    .map_err(|_| "the filter has a text with a wrong escape".to_owned());
            }
            c => escaped = c == '\\' && !escaped,
        }
    }
    Err("the filter has a text that does not end".to_owned())
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    comparisons: usize,
    attributes: &'static [&'static str],
}

impl<'a> Parser<'a> {
    fn or(&mut self, depth: usize) -> Result<Filter, String> {
        let mut all = vec![self.and(depth)?];
        while self.takes("or") {
            all.push(self.and(depth)?);
        }
        Ok(one_or(all, Filter::Or))
    }

    fn and(&mut self, depth: usize) -> Result<Filter, String> {
        let mut all = vec![self.not(depth)?];
        while self.takes("and") {
            all.push(self.not(depth)?);
        }
        Ok(one_or(all, Filter::And))
    }

    fn not(&mut self, depth: usize) -> Result<Filter, String> {
        if depth > DEEPEST {
            return Err(format!("the filter is deeper than {DEEPEST} levels"));
        }
        if self.takes("not") {
            return Ok(Filter::Not(Box::new(self.not(depth + 1)?)));
        }
        match self.next() {
            Some(Token::Open) => {
                let inner = self.or(depth + 1)?;
                match self.next() {
                    Some(Token::Close) => Ok(inner),
                    other => Err(missing("`)`", other)),
                }
            }
            Some(Token::Word(attribute)) => self.comparison(attribute),
            other => Err(missing("an attribute", other)),
        }
    }

    fn comparison(&mut self, attribute: &str) -> Result<Filter, String> {
        self.comparisons += 1;
        if self.comparisons > MOST {
            return Err(format!("the filter has more than {MOST} comparisons"));
        }
        let lower = attribute.to_lowercase();
        let name = SCHEMAS
            .iter()
            .find_map(|schema| lower.strip_prefix(schema))
            .unwrap_or(&lower);
        if !self.attributes.contains(&name) {
            return Err(format!(
                "the filter names the attribute `{}`, which is none of {}",
                crate::names::shortened(attribute),
                self.attributes.join(", ")
            ));
        }
        let operator = match self.next() {
            Some(Token::Word(word)) => word.to_lowercase(),
            other => return Err(missing("an operator", other)),
        };
        let operator = match operator.as_str() {
            "pr" => return Ok(Filter::Present(name.to_owned())),
            "eq" => Operator::Equal,
            "ne" => Operator::NotEqual,
            "co" => Operator::Contains,
            "sw" => Operator::StartsWith,
            "ew" => Operator::EndsWith,
            "gt" => Operator::Greater,
            "ge" => Operator::GreaterOrEqual,
            "lt" => Operator::Less,
            "le" => Operator::LessOrEqual,
            other => {
                return Err(format!(
                    "the filter has the operator `{}`, which is none of eq, ne, co, sw, ew, pr, gt, ge, lt, le",
                    crate::names::shortened(other)
                ));
            }
        };
        Ok(Filter::Compare(name.to_owned(), operator, self.value()?))
    }

    fn value(&mut self) -> Result<Value, String> {
        let word = match self.next() {
            Some(Token::Text(text)) => return Ok(Value::Text(text.clone())),
            Some(Token::Word(word)) => word,
            other => return Err(missing("a value", other)),
        };
        match (word.to_lowercase().as_str(), word.parse()) {
            ("true", _) => Ok(Value::Truth(true)),
            ("false", _) => Ok(Value::Truth(false)),
            ("null", _) => Ok(Value::Nothing),
            (_, Ok(number)) => Ok(Value::Number(number)),
            _ => Err(format!(
                "the filter has the value `{}`, which is no text in double quotes, number, true, false or null",
                crate::names::shortened(word)
            )),
        }
    }

    fn next(&mut self) -> Option<&'a Token> {
        let token = self.tokens.get(self.at);
        self.at += 1;
        token
    }

    /// Whether the next word is this one; then it is taken.
    fn takes(&mut self, word: &str) -> bool {
        let is_next =
            matches!(self.tokens.get(self.at), Some(Token::Word(own)) if own.eq_ignore_ascii_case(word));
        self.at += usize::from(is_next);
        is_next
    }
}

fn one_or(mut all: Vec<Filter>, several: fn(Vec<Filter>) -> Filter) -> Filter {
    match all.pop() {
        Some(only) if all.is_empty() => only,
        last => {
            all.extend(last);
            several(all)
        }
    }
}

fn missing(what: &str, found: Option<&Token>) -> String {
    match found {
        Some(token) => format!("the filter has {token} where it should have {what}"),
        None => format!("the filter ends where it should have {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Person(&'static str, &'static [&'static str], bool);

    impl Resource for Person {
        const ATTRIBUTES: &'static [&'static str] =
            &["username", "origin", "emails.value", "active", "meta.created"];

        fn values(&self, attribute: &str) -> Vec<Value> {
            match attribute {
                "username" => vec![Value::Text(self.0.to_owned())],
                "origin" => vec![Value::Text("uaa".to_owned())],
                "emails.value" => self.1.iter().map(|one| Value::Text((*one).to_owned())).collect(),
                "active" => vec![Value::Truth(self.2)],
                "meta.created" => vec![Value::Time(1_700_000_000_000)],
                _ => Vec::new(),
            }
        }
    }

    const PEOPLE: [Person; 3] = [
        Person("admin", &["admin"], true),
        Person("Naomi", &["n@example.com", "naomi@test"], true),
        Person("a\"b", &[], false),
    ];

    #[test]
    fn filters_find_what_they_say() {
        let check = |text: &str, expected: &[&str]| {
            let filter = Filter::parse::<Person>(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let found: Vec<&str> = PEOPLE
                .iter()
                .filter(|one| filter.fits(*one))
                .map(|one| one.0)
                .collect();
            assert_eq!(found, expected, "{text}");
        };
        let all = ["admin", "Naomi", "a\"b"];
        check(r#"userName eq "admin" and origin eq "uaa""#, &["admin"]);
        check(r#"USERNAME EQ "ADMIN" AND Origin Eq "UAA""#, &["admin"]);
        check(
            r#"userName eq "admin" or userName eq "naomi""#,
            &["admin", "Naomi"],
        );
        check(r#"userName eq "admin" and origin eq "ldap""#, &[]);
        check(
            r#"origin eq "ldap" and userName eq "x" or userName eq "admin""#,
            &["admin"],
        );
        check(
            r#"origin eq "ldap" and (userName eq "x" or userName eq "admin")"#,
            &[],
        );
        check(r#"not (userName eq "admin")"#, &["Naomi", "a\"b"]);
        check(r#"not userName sw "a" and active eq true"#, &["Naomi"]);
        check(r#"userName eq "a\"b""#, &["a\"b"]);
        check(r#"userName eq "\u0061dmin""#, &["admin"]);
        check(r#"userName co "DM""#, &["admin"]);
        check(r#"userName ew "mi""#, &["Naomi"]);
        check(r#"emails.value co "@test""#, &["Naomi"]);
        check(r#"emails.value ne "admin""#, &["Naomi", "a\"b"]);
        check("emails.value pr", &["admin", "Naomi"]);
        check("active eq false", &["a\"b"]);
        check(r#"active eq "true""#, &["admin", "Naomi"]);
        check(r#"meta.created gt "2023-01-01T00:00:00Z""#, &all);
        check(r#"meta.created lt "2023-01-01T00:00:00Z""#, &[]);
        check(r#"urn:scim:schemas:core:1.0:userName eq "admin""#, &["admin"]);
        check("userName eq true", &[]);
        check(r#"userName gt "b""#, &["Naomi"]);
    }

    #[test]
    fn what_is_no_filter_is_refused_and_nothing_grows_without_end() {
        let deep = |n: usize| format!("{}userName pr{}", "(".repeat(n), ")".repeat(n));
        let nots = |n: usize| format!("{}userName pr", "not ".repeat(n));
        let many = |n: usize| vec!["userName pr"; n].join(" or ");
        for good in [deep(DEEPEST), nots(DEEPEST), many(MOST)] {
            assert!(Filter::parse::<Person>(&good).is_ok());
        }
        for bad in [
            String::new(),
            "userName".to_owned(),
            "userName eq".to_owned(),
            "userName eq admin".to_owned(),
            "userName eq 'admin'".to_owned(),
            "userName eq \"admin".to_owned(),
            "userName eq \"a\\x\"".to_owned(),
            "userName is \"admin\"".to_owned(),
            "password eq \"x\"".to_owned(),
            "userName pr and".to_owned(),
            "userName pr userName pr".to_owned(),
            "(userName pr".to_owned(),
            "userName pr)".to_owned(),
            "not".to_owned(),
            "\"userName\" pr".to_owned(),
            deep(DEEPEST + 1),
            nots(DEEPEST + 1),
            deep(100_000),
            many(MOST + 1),
            format!("userName eq \"{}\"", "x".repeat(LONGEST)),
        ] {
            assert!(
                Filter::parse::<Person>(&bad).is_err(),
                "{}",
                crate::names::shortened(&bad)
            );
        }
    }

    #[test]
    fn an_index_is_used_only_where_all_that_is_found_has_the_name() {
        let name = |text: &str| {
            let filter = Filter::parse::<Person>(text).expect("a filter");
            filter.has_to_be("username").map(str::to_owned)
        };
        assert_eq!(
            name(r#"origin eq "uaa" and userName eq "a""#).as_deref(),
            Some("a")
        );
        for none in [
            r#"userName eq "a" or origin eq "x""#,
            r#"not userName eq "a""#,
            "userName pr",
        ] {
            assert_eq!(name(none), None, "{none}");
        }
    }
}
