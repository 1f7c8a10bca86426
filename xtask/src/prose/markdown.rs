//! Finds passages and their words in Markdown, which Rust's comments are as well.

/// A word and the line it starts on. A code span belongs to one word, with its spaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) text: String,
    /// Counted from 1.
    pub(super) line: usize,
}

/// Text that no sentence leaves: a paragraph, a list item, a cell of a table.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Passage {
    pub(super) words: Vec<Word>,
    /// A heading, or a cell in the first row of a table. It has no sentences.
    pub(super) is_heading: bool,
}

/// The passages of numbered lines. Code blocks, link definitions and HTML comments are left out.
pub(super) fn passages(lines: &[(usize, String)]) -> Vec<Passage> {
    let mut reader = Reader::default();
    for (index, (number, line)) in lines.iter().enumerate() {
        let next = lines.get(index + 1).map_or("", |(_, line)| line);
        reader.line(*number, line, next);
    }
    reader.end_paragraph();
    reader.passages
}

#[derive(Default)]
struct Reader {
    passages: Vec<Passage>,
    paragraph: Vec<(usize, String)>,
    /// The fence of the code block that is open.
    fence: Option<&'static str>,
    in_html_comment: bool,
    in_list: bool,
}

impl Reader {
    fn line(&mut self, number: usize, line: &str, next: &str) {
        let text = line.trim();
        if let Some(fence) = self.fence {
            self.fence = (!text.starts_with(fence)).then_some(fence);
            return;
        }
        self.fence = ["```", "~~~"].into_iter().find(|fence| text.starts_with(fence));
        self.in_html_comment |= text.starts_with("<!--");
        let indented_code = self.paragraph.is_empty() && !self.in_list && line.starts_with("     ");
        if self.fence.is_some() || self.in_html_comment || text.is_empty() || indented_code || is_link_definition(text)
        {
            self.in_html_comment &= !text.contains("-->");
            return self.end_paragraph();
        }
        if let Some(heading) = text.strip_prefix('#') {
            self.end_paragraph();
            self.in_list = false;
            self.push(vec![(number, heading.trim_start_matches('#').to_owned())], true);
        } else if text.starts_with('|') {
            self.end_paragraph();
            if !is_delimiter_row(text) {
                let is_heading = is_delimiter_row(next.trim());
                cells(text).into_iter().for_each(|cell| self.push(vec![(number, cell)], is_heading));
            }
        } else if let Some(item) = list_item(text) {
            self.end_paragraph();
            self.in_list = true;
            self.paragraph.push((number, item.to_owned()));
        } else {
            self.in_list &= line.starts_with("  ") || !self.paragraph.is_empty();
            self.paragraph.push((number, text.trim_start_matches("> ").to_owned()));
        }
    }

    fn end_paragraph(&mut self) {
        let paragraph = std::mem::take(&mut self.paragraph);
        self.push(paragraph, false);
    }

    fn push(&mut self, lines: Vec<(usize, String)>, is_heading: bool) {
        let words = words(&lines);
        if !words.is_empty() {
            self.passages.push(Passage { words, is_heading });
        }
    }
}

/// `[name]: address`
fn is_link_definition(text: &str) -> bool {
    text.starts_with('[') && text.split_once("]: ").is_some_and(|(name, _)| !name.contains(' '))
}

/// `| --- | :-: |`
fn is_delimiter_row(text: &str) -> bool {
    text.starts_with('|') && text.contains('-') && text.chars().all(|c| "|-: ".contains(c))
}

/// The text after `- `, `* `, `+ ` or `1. `.
fn list_item(text: &str) -> Option<&str> {
    let after_number = text.trim_start_matches(|c: char| c.is_ascii_digit());
    if after_number.len() < text.len() {
        return after_number.strip_prefix(". ").filter(|_| text.len() - after_number.len() <= 2);
    }
    ["- ", "* ", "+ "].into_iter().find_map(|marker| text.strip_prefix(marker))
}

/// The cells of a row. A bar in a code span, or after a backslash, separates none.
fn cells(row: &str) -> Vec<String> {
    let mut cells = vec![String::new()];
    let (mut in_code, mut escaped) = (false, false);
    for c in row.trim_matches('|').chars() {
        in_code ^= c == '`';
        match cells.last_mut() {
            Some(cell) if c != '|' || in_code || escaped => cell.push(c),
            _ => cells.push(String::new()),
        }
        escaped = c == '\\';
    }
    cells
}

/// The words of lines, without emphasis and the addresses of links.
fn words(lines: &[(usize, String)]) -> Vec<Word> {
    let chars: Vec<(usize, char)> =
        lines.iter().flat_map(|(number, line)| line.chars().chain(['\n']).map(move |c| (*number, c))).collect();
    let mut words = Vec::new();
    let mut word = Word { text: String::new(), line: 0 };
    let mut at = 0;
    while let Some(&(line, c)) = chars.get(at) {
        if word.text.is_empty() {
            word.line = line;
        }
        match c {
            '`' => {
                let end = end_of_code(&chars, at);
                word.text.extend(chars[at..end].iter().map(|(_, c)| if c.is_whitespace() { ' ' } else { *c }));
                at = end;
                continue;
            }
            c if c.is_whitespace() => {
                if !word.text.is_empty() {
                    words.push(std::mem::replace(&mut word, Word { text: String::new(), line }));
                }
            }
            '*' | '[' => {}
            ']' => {
                if let Some(end) = end_of_address(&chars, at + 1) {
                    at = end;
                    continue;
                }
            }
            c => word.text.push(c),
        }
        at += 1;
    }
    words
}

/// The end of the code span that starts at `start`; the end of its first backticks if nothing closes them.
fn end_of_code(chars: &[(usize, char)], start: usize) -> usize {
    let ticks = |at: usize| chars[at..].iter().take_while(|(_, c)| *c == '`').count();
    let opening = ticks(start);
    let mut at = start + opening;
    while at < chars.len() {
        match ticks(at) {
            0 => at += 1,
            closing if closing == opening => return at + closing,
            other => at += other,
        }
    }
    start + opening
}

/// The end of `(address)` or `[name]` at `start`.
fn end_of_address(chars: &[(usize, char)], start: usize) -> Option<usize> {
    let (opening, closing) = match chars.get(start)?.1 {
        '(' => ('(', ')'),
        '[' => ('[', ']'),
        _ => return None,
    };
    let mut depth = 0;
    for (index, (_, c)) in chars[start..].iter().enumerate() {
        depth += i32::from(*c == opening) - i32::from(*c == closing);
        if depth == 0 {
            return Some(start + index + 1);
        }
    }
    None
}
