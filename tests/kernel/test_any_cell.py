"""Random cells: letters of any script, evcxr's commands, every form of `let`, code that is broken, and requests at any
place of them. Whatever is sent, the kernel answers, and a variable of before lives."""

import os
import random
import time
import unittest

from case import LONG, WithKernel

# Seconds of cells.
SECONDS = float(os.environ.get("FUZZ_SECONDS", "600" if LONG else "10"))
# The short run is the same each time.
SEED = int(os.environ.get("FUZZ_SEED", "0")) or (random.randrange(1, 2**31) if LONG else 1230014426)
# Seconds within which anything is answered, on a busy machine, too.
ANSWER = 60

LETTERS = ["a", "Z", "_", "é", "ß", "ﬁ", "猫", "か", "한", "ไ", "ع", "א", "𝛼", "🦀", "👩‍👩‍👧", "🇩🇪", "e\u0301", "\u200b", "\u202e",
           "\ufeff", "\u2028", "\x0b", "\x0c", "\r", "\r\n", "\n", "\t", "\\", '"', "'", "`", "$", "%", "{", "}", "\x7f", "\x00"]
NAMES = ["x", "naïve", "größe", "日本", "переменная", "r#type", "_", "mut y", "ref z"]
COMMANDS = [":help", ":vars", ":last_error_json", ":type", ":opt 0", ":opt 2", ":opt é", ":efmt {}", ":efmt 猫", ":timing",
            ":preserve_vars_on_panic 1", ":dep", ":dep 猫", ":dep nothing_of_this_name_é = { path = \"/nowhere/é\" }", ":show_deps", ":explain",
            ":nonsense", ":é", ":", ": help", ":type naïve", "?", "!echo é", "!", "%%time", "%é", ":toolchain", ":offline 1", ":env É=1"]
VALUES = ["1", "-1i64", "2.5f32", "\"é🦀\"", "'猫'", "String::from(\"ß\")", "vec![\"א\"; 2]", "Some(3)", "(1, 'a')", "[0u8; 3]", "None::<u8>",
          "|n: i32| n + 1", "\"a\".parse::<i32>()?", "Box::new(7) as Box<dyn std::fmt::Debug>", "{ let t = 1; t + 1 }", "panic!(\"é\")",
          "if true { 1 } else { 2 }", "match 3 { 3 => \"猫\", _ => \"\" }", "r#\"ra\"w\"#", "b\"bytes\"", "c\"c\"", "kept.len()", "unknown_é"]
FORMS = ["let {n} = {v};", "let {n} = {v}", "let {n}: _ = {v};", "let {n}: String = {v};", "let {n};", "let ({n}, w) = ({v}, {w});",
         "let [p, q] = [{v}, {v}];", "let Some({n}) = {v} else {{ panic!() }};", "let mut {n} = {v}; {n} = {w};", "{v}", "{v};", "println!(\"{{:?}} é\", {v});",
         "eprint!(\"{t}\");", "// {t}\n{v}", "/* {t} */ {v}", "\"{t}\".len()", "fn f{d}() -> usize {{ \"{t}\".len() }} f{d}()",
         "struct S{d} {{ é: u8 }} impl S{d} {{ fn g(&self) -> u8 {{ self.é }} }} S{d} {{ é: 1 }}.g()", "enum E{d} {{ Ä, B(u8) }}",
         "mod m{d} {{ pub const Ω: u8 = 1; }} m{d}::Ω", "macro_rules! k{d} {{ () => {{ 1 }} }} k{d}!()", "use std::fmt::Write as _;", "static S{d}: u8 = 1;",
         "thread_local! {{ static T{d}: u8 = 1; }}", "for i in 0..2 {{ println!(\"{{i}} {t}\"); }}", "{t}", "#[derive(Debug)] {v}",
         "unsafe {{ 1 }}", "return Ok(());", "loop {{ break }}", "'é: loop {{ break 'é; }}", "{v}{t}", "{v} // {t}"]


class AnyCell(WithKernel):
    def test_the_kernel_answers_whatever_a_cell_holds(self):
        rng = random.Random(SEED)
        self.run_ok('let kept: Vec<String> = vec!["alive".to_owned()];')
        self.run_ok("let typed: Option<u16> = Some(7);")
        deadline, cells, slowest, recent = time.monotonic() + SECONDS, 0, 0.0, []
        while time.monotonic() < deadline:
            code = self.cell(rng)
            with self.subTest(seed=SEED, cell=cells, code=code):
                started = time.monotonic()
                if rng.random() < 0.5:
                    self.look_into(rng, code)
                result = self.kernel.execute(code, timeout=ANSWER)
                self.assertIn(result.status, ("ok", "error"), code)
                slowest = max(slowest, time.monotonic() - started)
                cells += 1
                recent = [*recent[-11:], (code, result.reply.get("evalue", result.text))]
                if cells % 10 == 0 or result.status == "error" and rng.random() < 0.2:
                    alive = self.kernel.execute("(kept[0].as_str(), typed)", timeout=ANSWER)
                    self.assertIn("alive", alive.text or "", f"{alive.reply} after {recent}")
        print(f"{cells} cells of seed {SEED}; slowest answer {slowest:.1f} s", flush=True)

    def cell(self, rng):
        text = "".join(rng.choice(LETTERS) for _ in range(rng.randrange(8)))
        lines = []
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            if rng.random() < 0.2:
                lines.append(rng.choice(COMMANDS))
                continue
            form = rng.choice(FORMS)
            values = {"n": rng.choice(NAMES), "v": rng.choice(VALUES), "w": rng.choice(VALUES), "t": text, "d": rng.randrange(4)}
            lines.append(form.format(**values))
        code = rng.choice(["\n", "\n", " ", "\r\n", "\n\n", ""]).join(lines)
        if rng.random() < 0.1 and code:  # a piece lost, as while typing
            at = rng.randrange(len(code))
            code = code[:at] + code[at + rng.randrange(4):]
        # `kept` is neither moved nor defined anew.
        return code.replace("let kept", "let other")

    def look_into(self, rng, code):
        """Completion, inspection and completeness at any place; offsets count characters."""
        client = self.kernel.client
        place = rng.randrange(len(code) + 2)
        send = rng.choice(
            [
                lambda: client.complete(code, cursor_pos=place),
                lambda: client.inspect(code, cursor_pos=place, detail_level=rng.randrange(2)),
                lambda: client.is_complete(code),
            ]
        )
        reply = self.ask(send, timeout=ANSWER)
        self.assertIn(reply["status"], ("ok", "error", "complete", "incomplete", "invalid", "unknown"))
        if "cursor_start" in reply:
            self.assertTrue(0 <= reply["cursor_start"] <= reply["cursor_end"] <= max(len(code), place), (code, place, reply))


if __name__ == "__main__":
    unittest.main()
