//! The expectations of operators about a policy: assertions in the configuration, and files of test cases.

pub mod assertions;
pub mod cases;
