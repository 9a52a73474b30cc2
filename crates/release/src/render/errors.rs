//! What went wrong in templates, as the nested list that BOSH prints.

use std::fmt;

use stolos_base::{Class, Classify};

/// What went wrong in one template. Engines stop at the first error of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateError {
    /// The template's source.
    pub template: String,
    /// The line in it, from 1.
    pub line: Option<usize>,
    /// What is wrong; no value of a property is in it.
    pub message: String,
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            template, message, ..
        } = self;
        match self.line {
            Some(line) => write!(
                f,
                "Error filling in template '{template}' (line {line}: {message})"
            ),
            None => write!(f, "Error filling in template '{template}' ({message})"),
        }
    }
}

/// What went wrong in one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRenderErrors {
    /// The job.
    pub job: String,
    /// Its templates.
    pub errors: Vec<TemplateError>,
}

/// What went wrong for one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderErrors {
    /// The group that the instance is of.
    pub instance_group: String,
    /// Its jobs.
    pub jobs: Vec<JobRenderErrors>,
}

impl RenderErrors {
    fn lines(&self) -> Vec<String> {
        let jobs = self.jobs.iter().map(|job| {
            let header = format!("Unable to render templates for job '{}'. Errors are:", job.job);
            nested(header, job.errors.iter().map(|error| vec![error.to_string()]))
        });
        let header = format!(
            "Unable to render jobs for instance group '{}'. Errors are:",
            self.instance_group
        );
        nested(header, jobs)
    }
}

impl fmt::Display for RenderErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}

impl std::error::Error for RenderErrors {}

impl Classify for RenderErrors {
    fn class(&self) -> Class {
        Class::User
    }
}

/// What went wrong in a deployment: the lists of its instances, each different one once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeploymentRenderErrors(Vec<RenderErrors>);

impl DeploymentRenderErrors {
    /// Collects; instances of a group that fail in the same way are one.
    #[must_use]
    pub fn new(errors: impl IntoIterator<Item = RenderErrors>) -> Self {
        let mut different: Vec<RenderErrors> = Vec::new();
        for error in errors {
            if !different.contains(&error) {
                different.push(error);
            }
        }
        Self(different)
    }
}

impl fmt::Display for DeploymentRenderErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = "Unable to render instance groups for deployment. Errors are:".to_owned();
        f.write_str(&nested(header, self.0.iter().map(RenderErrors::lines)).join("\n"))
    }
}

impl std::error::Error for DeploymentRenderErrors {}

impl Classify for DeploymentRenderErrors {
    fn class(&self) -> Class {
        Class::User
    }
}

/// A header and its items below, each indented and introduced by a dash.
fn nested(header: String, items: impl IntoIterator<Item = Vec<String>>) -> Vec<String> {
    let mut lines = vec![header];
    for item in items {
        for (i, line) in item.into_iter().enumerate() {
            lines.push(if i == 0 {
                format!("  - {line}")
            } else {
                format!("  {line}")
            });
        }
    }
    lines
}
