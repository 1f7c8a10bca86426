//! Finds comments, string literals and identifiers in Rust source.

/// A numbered line of prose.
type Lines = Vec<(usize, String)>;

/// The parts of a source file that are named or written by people.
#[derive(Default)]
pub(super) struct Source {
    /// Neighbouring comment lines of one kind are one comment.
    pub(super) comments: Vec<Lines>,
    /// String literals of several words.
    pub(super) strings: Vec<Lines>,
    /// Each identifier with its line, keywords included.
    pub(super) identifiers: Vec<(usize, String)>,
}

impl Source {
    pub(super) fn scan(text: &str) -> Self {
        let chars: Vec<char> = text.chars().collect();
        let mut scanner = Scanner { chars: &chars, at: 0, line: 1, last_comment: None, source: Self::default() };
        while scanner.at < chars.len() {
            scanner.token();
        }
        scanner.source
    }
}

/// The kind of the last comment, and its line.
type LastComment = Option<(&'static str, usize)>;

struct Scanner<'a> {
    chars: &'a [char],
    at: usize,
    line: usize,
    last_comment: LastComment,
    source: Source,
}

impl Scanner<'_> {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn starts_with(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(ahead, c)| self.peek(ahead) == c)
    }

    fn advance(&mut self, count: usize) {
        for _ in 0..count {
            self.line += usize::from(self.peek(0) == '\n');
            self.at += 1;
        }
    }

    fn token(&mut self) {
        let c = self.peek(0);
        if self.starts_with("//") {
            self.line_comment();
        } else if self.starts_with("/*") {
            self.block_comment();
        } else if c == '"' {
            self.string();
        } else if c == '\'' {
            self.char_or_lifetime();
        } else if c.is_alphabetic() || c == '_' {
            self.identifier();
        } else if c.is_ascii_digit() {
            while self.peek(0).is_alphanumeric() || self.peek(0) == '_' {
                self.advance(1);
            }
        } else {
            self.advance(1);
        }
    }

    fn line_comment(&mut self) {
        let kind = ["///", "//!", "//"].into_iter().find(|kind| self.starts_with(kind)).unwrap_or("//");
        let line_start = self.chars[..self.at].iter().rposition(|c| *c == '\n').map_or(0, |newline| newline + 1);
        let alone = self.chars[line_start..self.at].iter().all(|c| c.is_whitespace());
        let line = self.line;
        self.advance(kind.len());
        let start = self.at;
        while self.at < self.chars.len() && self.peek(0) != '\n' {
            self.advance(1);
        }
        let text = (line, self.chars[start..self.at].iter().collect());
        let continues = alone && line > 1 && self.last_comment == Some((kind, line - 1));
        match self.source.comments.last_mut() {
            Some(comment) if continues => comment.push(text),
            _ => self.source.comments.push(vec![text]),
        }
        self.last_comment = alone.then_some((kind, line));
    }

    fn block_comment(&mut self) {
        let (start, line) = (self.at, self.line);
        let mut depth = 0;
        while self.at < self.chars.len() {
            let (opens, closes) = (self.starts_with("/*"), self.starts_with("*/"));
            depth += i32::from(opens) - i32::from(closes);
            self.advance(if opens || closes { 2 } else { 1 });
            if depth == 0 {
                break;
            }
        }
        let text: String = self.chars[start..self.at].iter().collect();
        let text = text.trim_start_matches(['/', '*', '!']).trim_end_matches(['/', '*']);
        self.source.comments.push(numbered(text, line));
    }

    fn string(&mut self) {
        let line = self.line;
        self.advance(1);
        let mut text = String::new();
        while self.at < self.chars.len() && self.peek(0) != '"' {
            match (self.peek(0), self.peek(1)) {
                // The next line continues this one; its number stays the first one's.
                ('\\', '\n') => {
                    self.advance(2);
                    while self.peek(0).is_whitespace() {
                        self.advance(1);
                    }
                }
                ('\\', escaped) => {
                    text.push(if escaped == 'n' { '\n' } else { ' ' });
                    self.advance(2);
                }
                (c, _) => {
                    text.push(c);
                    self.advance(1);
                }
            }
        }
        self.advance(1);
        self.push_string(&text, line);
    }

    fn raw_string(&mut self) {
        let line = self.line;
        let hashes = self.chars[self.at..].iter().take_while(|c| **c == '#').count();
        self.advance(hashes + 1);
        let end = format!("\"{}", "#".repeat(hashes));
        let start = self.at;
        while self.at < self.chars.len() && !self.starts_with(&end) {
            self.advance(1);
        }
        let text: String = self.chars[start..self.at].iter().collect();
        self.advance(end.len());
        self.push_string(&text, line);
    }

    /// A single word may belong to a protocol, so only prose of several words is kept.
    fn push_string(&mut self, text: &str, line: usize) {
        if text.trim().contains(' ') {
            self.source.strings.push(numbered(text, line));
        }
    }

    fn char_or_lifetime(&mut self) {
        let length = match (self.peek(1), self.peek(2)) {
            ('\\', _) => 3 + (3..).find(|ahead| matches!(self.peek(*ahead), '\'' | '\0')).unwrap_or(3) - 2,
            (_, '\'') => 3,
            _ => 1,
        };
        self.advance(length);
    }

    fn identifier(&mut self) {
        let (start, line) = (self.at, self.line);
        while self.peek(0).is_alphanumeric() || self.peek(0) == '_' {
            self.advance(1);
        }
        let name: String = self.chars[start..self.at].iter().collect();
        let hashes = self.chars[self.at..].iter().take_while(|c| **c == '#').count();
        match (&*name, self.peek(hashes)) {
            ("r" | "br" | "cr", '"') => self.raw_string(),
            ("b" | "c", '"') => {}
            ("r", _) if hashes == 1 => self.advance(1),
            _ => self.source.identifiers.push((line, name)),
        }
    }
}

fn numbered(text: &str, first: usize) -> Lines {
    text.lines().enumerate().map(|(index, line)| (first + index, line.to_owned())).collect()
}
