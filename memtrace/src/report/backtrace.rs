//! The lines of a stack, below the site that it is of.

use super::document::{Frame, StackEnd};
use super::stack;
use super::text::{base_name, clean};

/// A line per frame, and one that says why there are no more, where the stack is not whole.
pub fn lines<'a>(
    frames: impl IntoIterator<Item = &'a Frame>,
    end: Option<StackEnd>,
) -> impl Iterator<Item = String> {
    let (mut lines, mut last) = (Vec::new(), None);
    for frame in frames {
        lines.push(stack::long(frame));
        last = Some(frame);
    }
    lines.extend(end.and_then(|end| cut(end, last)));
    lines.into_iter().map(|line| format!("        {line}\n"))
}

fn cut(end: StackEnd, last: Option<&Frame>) -> Option<String> {
    let module = last.and_then(|frame| frame.module.as_deref());
    let place = module.map_or("code that is in no file", base_name);
    let reason = match end {
        StackEnd::Start => return None,
        StackEnd::Truncated => "the stack is deeper than what is taken".to_owned(),
        StackEnd::NoRules => format!("no unwind rules in {place}"),
        StackEnd::Unreadable => "the stack could not be read".to_owned(),
        StackEnd::UnsupportedRule => format!("unwind rules that are not supported in {place}"),
        StackEnd::NoMapping => "the return address lies in no code".to_owned(),
        StackEnd::StackPointer => format!("unwind rules that lead nowhere in {place}"),
        StackEnd::NotKnown => "what was mapped was not known yet".to_owned(),
    };
    Some(clean(&format!("… cut: {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::document::FoundBy;
    use crate::report::fixture::{bare, frame, nameless};

    #[test]
    fn a_stack_that_is_cut_says_why() {
        let text = |frames: &[Frame], end| lines(frames, end).collect::<String>();
        let main = frame("main", "/a.c", 1);
        assert_eq!(
            text(std::slice::from_ref(&main), Some(StackEnd::Start)),
            "        main (/a.c:1)\n"
        );
        let other = Frame {
            found_by: FoundBy::FramePointer,
            ..nameless("/lib/libfoo.so", 16)
        };
        assert_eq!(
            text(&[main, other], Some(StackEnd::NoRules)),
            "        main (/a.c:1)\n        /lib/libfoo.so+0x10 [by frame pointer]\n        \
             … cut: no unwind rules in libfoo.so\n"
        );
        assert_eq!(
            text(&[bare()], Some(StackEnd::NoRules)),
            "        0x401136\n        … cut: no unwind rules in code that is in no file\n"
        );
        assert_eq!(text(&[], None), "");
    }
}
