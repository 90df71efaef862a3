//! Splits a stream into JSON objects: nothing stands between them but, perhaps, blanks.
#![forbid(unsafe_code)]

/// What has come and was not taken yet.
#[derive(Debug, Default)]
pub struct Splitter {
    bytes: Vec<u8>,
    /// Of `bytes`, what was given out; it goes when more comes, since many objects may come at once.
    taken: usize,
    /// Looked at already.
    at: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Splitter {
    /// More has come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.at -= self.taken;
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether nothing is unfinished.
    pub fn is_empty(&self) -> bool {
        self.rest().iter().all(u8::is_ascii_whitespace)
    }

    fn rest(&self) -> &[u8] {
        self.bytes.get(self.taken..).unwrap_or_default()
    }

    /// The next whole object. What is none is found as early as can be: at its first byte.
    ///
    /// # Errors
    /// If it is none, or longer than `max_bytes`.
    pub fn next(&mut self, max_bytes: usize) -> Result<Option<Vec<u8>>, &'static str> {
        if self.depth == 0 {
            self.taken += self.rest().iter().take_while(|b| b.is_ascii_whitespace()).count();
            self.at = self.taken;
            match self.rest().first() {
                None => return Ok(None),
                Some(b'{') => {}
                Some(_) => return Err("what it says is no object"),
            }
        }
        while let Some(&byte) = self.bytes.get(self.at) {
            self.at += 1;
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        let object = self.bytes.get(self.taken..self.at).map(<[u8]>::to_vec);
                        self.taken = self.at;
                        return Ok(object);
                    }
                }
                _ => {}
            }
        }
        if self.rest().len() > max_bytes { Err("an object is too long") } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(splitter: &mut Splitter) -> Vec<String> {
        let mut found = Vec::new();
        while let Some(object) = splitter.next(100).unwrap() {
            found.push(String::from_utf8(object).unwrap());
        }
        found
    }

    #[test]
    fn objects_come_out_however_they_arrive() {
        let text = "{\"a\":[{\"b\":\"}\\\"{\"}]}{\"c\":1}\n {\"d\":\"\\\\\"}\n";
        let want = ["{\"a\":[{\"b\":\"}\\\"{\"}]}", "{\"c\":1}", "{\"d\":\"\\\\\"}"];
        for size in 1..text.len() {
            let mut splitter = Splitter::default();
            let mut found = Vec::new();
            for part in text.as_bytes().chunks(size) {
                splitter.push(part);
                found.extend(all(&mut splitter));
            }
            assert_eq!(found, want, "in parts of {size}");
            assert!(splitter.is_empty());
        }
    }

    #[test]
    fn what_is_no_object_or_too_long_is_an_error() {
        for bad in ["nonsense", "[1]", "1", "\"x\"", "}"] {
            let mut splitter = Splitter::default();
            splitter.push(bad.as_bytes());
            assert!(splitter.next(100).is_err(), "{bad}");
        }
        let mut splitter = Splitter::default();
        splitter.push(&[b'{'; 101]);
        assert!(splitter.next(100).is_err());
        let mut splitter = Splitter::default();
        splitter.push(b"{\"half");
        assert_eq!(splitter.next(100), Ok(None));
        assert!(!splitter.is_empty());
    }

    /// Half a million objects in one piece: none is moved for each that is taken.
    #[test]
    fn many_at_once_are_taken_one_by_one() {
        let mut splitter = Splitter::default();
        splitter.push(&b"{} ".repeat(500_000));
        let mut n_objects = 0;
        while splitter.next(100).unwrap().is_some() {
            n_objects += 1;
        }
        assert_eq!(n_objects, 500_000);
        assert!(splitter.is_empty());
    }
}
