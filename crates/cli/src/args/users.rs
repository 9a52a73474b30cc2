//! The words of verbs about passwords.

use camino::Utf8PathBuf;
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct ChangePassword {
    /// File that holds the present password, `-` for standard input; asked for when absent.
    #[arg(long, value_name = "FILE")]
    pub(crate) old_password_file: Option<Utf8PathBuf>,
    /// File that holds the new password, `-` for standard input; asked for, twice, when absent.
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<Utf8PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ResetPassword {
    /// User.
    pub(crate) name: String,
    /// File that holds the new password, `-` for standard input; asked for, twice, when absent.
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<Utf8PathBuf>,
}
