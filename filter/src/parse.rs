//! From text to a compiled expression.

use lcap_ffi::RecordType;

use crate::FilterError;
use crate::eval::{
    Expr, FIDS, FLAGS, Field, HSM_EVENTS, NUMBERS, Number, Numbers, OPEN_BITS, TEXTS, TextField,
    Texts, type_bit,
};
use crate::glob::Glob;
use crate::lex::{Token, split};

/// Deepest nesting: an expression from a client must not exhaust the stack.
const MAX_DEPTH: usize = 50;

pub(crate) fn parse(text: &str) -> Result<Expr, FilterError> {
    let mut parser = Parser { tokens: split(text)?, next: 0, end: text.len(), depth: 0 };
    let expr = parser.any()?;
    match parser.peek() {
        None => Ok(expr),
        Some(_) => parser.fail("expected `and`, `or` or the end"),
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    end: usize,
    depth: usize,
}

/// What follows a field.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Is,
    In,
    Like,
    Bits,
    Less,
    LessOrIs,
    More,
    MoreOrIs,
}

struct Value {
    at: usize,
    bytes: Vec<u8>,
}

impl Value {
    fn text(&self) -> Result<&str, FilterError> {
        std::str::from_utf8(&self.bytes).map_err(|_| self.wrong("text"))
    }

    fn wrong(&self, expected: &str) -> FilterError {
        let got = String::from_utf8_lossy(&self.bytes);
        FilterError { at: self.at, problem: format!("expected {expected}, got `{got}`") }
    }
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next).map(|(_, token)| token)
    }

    fn at(&self) -> usize {
        self.tokens.get(self.next).map_or(self.end, |(at, _)| *at)
    }

    fn fail<T>(&self, problem: impl Into<String>) -> Result<T, FilterError> {
        Err(FilterError { at: self.at(), problem: problem.into() })
    }

    /// Takes a sign or keyword if it comes next.
    fn eat(&mut self, what: &str) -> bool {
        let is = match self.peek() {
            Some(Token::Sign(sign)) => *sign == what,
            Some(Token::Word(word)) => word.eq_ignore_ascii_case(what),
            _ => false,
        };
        self.next += usize::from(is);
        is
    }

    fn any(&mut self) -> Result<Expr, FilterError> {
        let mut list = vec![self.all()?];
        while self.eat("or") || self.eat("||") {
            list.push(self.all()?);
        }
        Ok(joined(list, Expr::Any, |expr| match expr {
            Expr::Any(list) => Ok(list),
            other => Err(other),
        }))
    }

    fn all(&mut self) -> Result<Expr, FilterError> {
        let mut list = vec![self.not()?];
        while self.eat("and") || self.eat("&&") {
            list.push(self.not()?);
        }
        Ok(joined(list, Expr::All, |expr| match expr {
            Expr::All(list) => Ok(list),
            other => Err(other),
        }))
    }

    fn not(&mut self) -> Result<Expr, FilterError> {
        if self.depth == MAX_DEPTH {
            return self.fail("nested too deeply");
        }
        self.depth += 1;
        let expr = if self.eat("not") || self.eat("!") {
            negated(self.not()?)
        } else if self.eat("(") {
            let inner = self.any()?;
            if !self.eat(")") {
                return self.fail("expected `)`");
            }
            inner
        } else {
            self.test()?
        };
        self.depth -= 1;
        Ok(expr)
    }

    fn test(&mut self) -> Result<Expr, FilterError> {
        let at = self.at();
        let Some(Token::Word(field)) = self.peek().cloned() else {
            return self.fail("expected a field, `not` or `(`");
        };
        self.next += 1;
        let field = field.to_ascii_lowercase();
        let op = self.op()?;
        let Some((op, opposite)) = op else { return bare(&field, at) };
        let values = self.values(op)?;
        let expr = compile(&field, at, op, &values)?;
        Ok(if opposite { negated(expr) } else { expr })
    }

    /// The operator, and whether its opposite is meant.
    fn op(&mut self) -> Result<Option<(Op, bool)>, FilterError> {
        let signs = [
            ("==", Op::Is, false),
            ("=", Op::Is, false),
            ("!=", Op::Is, true),
            ("~", Op::Like, false),
            ("!~", Op::Like, true),
            ("<=", Op::LessOrIs, false),
            ("<", Op::Less, false),
            (">=", Op::MoreOrIs, false),
            (">", Op::More, false),
            ("&", Op::Bits, false),
            ("in", Op::In, false),
        ];
        if let Some((_, op, opposite)) = signs.iter().find(|(sign, ..)| self.eat(sign)) {
            return Ok(Some((*op, *opposite)));
        }
        if self.eat("not") {
            if self.eat("in") {
                return Ok(Some((Op::In, true)));
            }
            return self.fail("expected `in` after `not`");
        }
        Ok(None)
    }

    /// One value, or several in parentheses.
    fn values(&mut self, op: Op) -> Result<Vec<Value>, FilterError> {
        if !self.eat("(") {
            if op == Op::In {
                return self.fail("expected a list: in (…, …)");
            }
            return Ok(vec![self.value()?]);
        }
        if self.eat(")") {
            return Ok(Vec::new()); // nothing is in it
        }
        let mut list = vec![self.value()?];
        while self.eat(",") {
            list.push(self.value()?);
        }
        if self.eat(")") { Ok(list) } else { self.fail("expected `,` or `)`") }
    }

    fn value(&mut self) -> Result<Value, FilterError> {
        let at = self.at();
        let bytes = match self.peek() {
            Some(Token::Word(word)) => word.as_bytes().to_vec(),
            Some(Token::Quoted(bytes)) => bytes.clone(),
            _ => return self.fail("expected a value"),
        };
        self.next += 1;
        Ok(Value { at, bytes })
    }
}

/// One part stands for itself, and nested parts of the same kind become one list.
fn joined(
    mut list: Vec<Expr>,
    whole: impl Fn(Vec<Expr>) -> Expr,
    same: impl Fn(Expr) -> Result<Vec<Expr>, Expr>,
) -> Expr {
    if list.len() == 1
        && let Some(only) = list.pop()
    {
        return only;
    }
    let flat = list.into_iter().flat_map(|one| same(one).unwrap_or_else(|other| vec![other]));
    whole(flat.collect())
}

fn negated(expr: Expr) -> Expr {
    match expr {
        Expr::Not(inner) => *inner,
        other => Expr::Not(Box::new(other)),
    }
}

fn lookup<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|(known, _)| *known == name).map(|(_, what)| *what)
}

/// A field without an operator.
fn bare(name: &str, at: usize) -> Result<Expr, FilterError> {
    if let Some(flag) = lookup(&FLAGS, name) {
        return Ok(Expr::Flag(flag));
    }
    let field = lookup(&NUMBERS, name)
        .map(Field::Number)
        .or_else(|| lookup(&FIDS, name).map(Field::Fid))
        .or_else(|| lookup(&TEXTS, name).map(Field::Text))
        .or_else(|| (name == "nid").then_some(Field::Nid));
    match field {
        Some(field) => Ok(Expr::Has(field)),
        None if name == "type" => {
            Err(FilterError { at, problem: "`type` needs a value, e.g. type = CREAT".to_owned() })
        }
        None => Err(unknown(name, at)),
    }
}

fn unknown(name: &str, at: usize) -> FilterError {
    let names = NUMBERS.iter().map(|(n, _)| *n).chain(FIDS.iter().map(|(n, _)| *n));
    let names = names.chain(TEXTS.iter().map(|(n, _)| *n)).chain(FLAGS.iter().map(|(n, _)| *n));
    let names: Vec<&str> = ["type", "nid"].into_iter().chain(names).collect();
    let problem = format!("unknown field `{name}`; known: {}", names.join(", "));
    FilterError { at, problem }
}

fn compile(name: &str, at: usize, op: Op, values: &[Value]) -> Result<Expr, FilterError> {
    let unfit = |what: &str| {
        Err(FilterError { at, problem: format!("`{name}` is {what}: that operator does not fit") })
    };
    if name == "type" {
        if !matches!(op, Op::Is | Op::In) {
            return unfit("a type");
        }
        let mask = values.iter().try_fold(0, |mask, value| Ok(mask | one_type(value)?))?;
        return Ok(Expr::Types(mask));
    }
    if let Some(field) = lookup(&NUMBERS, name) {
        return number(field, op, values).map(|numbers| Expr::Number(field, numbers));
    }
    if let Some(field) = lookup(&FIDS, name) {
        if !matches!(op, Op::Is | Op::In) {
            return unfit("a FID");
        }
        let fids = values.iter().map(|value| {
            value.text()?.parse().map_err(|_| value.wrong("a FID such as [0x200000402:0x1a:0x0]"))
        });
        return Ok(Expr::Fid(field, fids.collect::<Result<_, _>>()?));
    }
    if let Some(field) = lookup(&TEXTS, name) {
        // Lustre has one spelling of its own words.
        let is_word = matches!(field, TextField::Hsm(_));
        let bytes = |value: &Value| {
            if is_word { value.bytes.to_ascii_uppercase() } else { value.bytes.clone() }
        };
        let texts = match op {
            Op::Is | Op::In => Texts::Is(values.iter().map(bytes).collect()),
            Op::Like => Texts::Like(values.iter().map(|value| Glob::new(&bytes(value))).collect()),
            _ => return unfit("text"),
        };
        return Ok(Expr::Text(field, texts));
    }
    if name == "nid" {
        if !matches!(op, Op::Is | Op::In) {
            return unfit("a NID");
        }
        let ranges = values
            .iter()
            .map(|value| value.text()?.parse().map_err(|error| value.wrong(&format!("{error}"))));
        return Ok(Expr::Nid(ranges.collect::<Result<_, _>>()?));
    }
    if lookup(&FLAGS, name).is_some() {
        return unfit("true or false");
    }
    Err(unknown(name, at))
}

fn one_type(value: &Value) -> Result<u32, FilterError> {
    let text = value.text()?;
    let by_number =
        || text.parse().ok().map(RecordType).filter(|rec_type| rec_type.name().is_some());
    RecordType::from_name(text)
        .or_else(by_number)
        .map(type_bit)
        .ok_or_else(|| value.wrong("a record type such as CREAT"))
}

fn number(field: Number, op: Op, values: &[Value]) -> Result<Numbers, FilterError> {
    let one = |value: &Value| {
        let text = value.text()?;
        let named = match field {
            Number::Hsm => {
                let event = HSM_EVENTS.iter().position(|name| name.eq_ignore_ascii_case(text));
                event.map(|event| event as u64)
            }
            Number::OpenFlags => lookup(&OPEN_BITS, &text.to_ascii_lowercase()),
            _ => None,
        };
        let plain = || match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        };
        let expected = match field {
            Number::Hsm => "an HSM event: archive, restore, cancel, release, remove or state",
            Number::OpenFlags => "an open mode such as write, or a number",
            _ => "a number",
        };
        named.or_else(plain).ok_or_else(|| value.wrong(expected))
    };
    let only = || match values {
        [value] => one(value),
        _ => Err(values.last().map_or_else(
            || FilterError { at: 0, problem: "expected one value".to_owned() },
            |value| value.wrong("one value"),
        )),
    };
    Ok(match op {
        Op::Is | Op::In => {
            let range = |value: &Value| {
                let ends = value.text()?.split_once('-');
                let Some((from, to)) = ends else { return one(value).map(|n| (n, n)) };
                let part =
                    |text: &str| one(&Value { at: value.at, bytes: text.as_bytes().to_vec() });
                let (from, to) = (part(from)?, part(to)?);
                if from <= to { Ok((from, to)) } else { Err(value.wrong("a range that goes up")) }
            };
            Numbers::In(values.iter().map(range).collect::<Result<_, _>>()?)
        }
        Op::Less => match only()? {
            // Below zero there is nothing; an empty list holds nothing.
            0 => Numbers::In(Vec::new()),
            n => Numbers::In(vec![(0, n - 1)]),
        },
        Op::LessOrIs => Numbers::In(vec![(0, only()?)]),
        Op::More => match only()?.checked_add(1) {
            Some(from) => Numbers::In(vec![(from, u64::MAX)]),
            None => Numbers::In(Vec::new()),
        },
        Op::MoreOrIs => Numbers::In(vec![(only()?, u64::MAX)]),
        Op::Bits => Numbers::Bits(
            values.iter().try_fold(0, |bits, value| Ok::<u64, FilterError>(bits | one(value)?))?,
        ),
        Op::Like => {
            let at = values.first().map_or(0, |value| value.at);
            return Err(FilterError {
                at,
                problem: "`~` compares text, this is a number".to_owned(),
            });
        }
    })
}
