/// One thing wrong with a configuration, as the room that owns the section sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Dotted key below the section, such as `completion.idle`; empty for the section as a whole.
    pub key: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl Fault {
    pub fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { key: key.into(), problem: problem.into() }
    }
}
