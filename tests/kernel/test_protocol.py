"""What jupyter_kernel_test leaves out: live displays, input, silent cells, failures, aborted queues, other requests.

Run by `python -m unittest discover tests/kernel` in an environment that has the kernelspecs.
"""

import json
import os
import re
import tempfile
import time
import unittest
from contextlib import contextmanager

from case import WithKernel, error_of, whole_error_of


class Cells(WithKernel):
    def test_values_and_counts(self):
        first = self.run_ok("20 + 22")
        self.assertEqual(first.text, "42")
        second = self.run_ok("1 + 1")
        self.assertEqual(second.reply["execution_count"], first.reply["execution_count"] + 1)

    def test_types_are_found_by_the_compiler(self):
        self.run_ok("let numbers = vec![1.5f32, 2.5]; let (mut count, name) = (numbers.len(), \"n\".to_string());")
        self.run_ok("count += 1;")
        self.assertEqual(self.run_ok("format!(\"{name}{count}{}\", numbers[1])").text.strip('"'), "n32.5")
        self.run_ok("let table = std::collections::BTreeMap::from([(1, vec![Some(2u8)])]);")
        self.assertEqual(self.run_ok("table.len()").text, "1")

    def test_partial_lines_come_as_they_are_printed(self):
        code = (
            "use std::io::Write; for i in 0..3 { print!(\"\\rstep {i}\"); std::io::stdout().flush()?;"
            " std::thread::sleep(std::time::Duration::from_millis(200)); }"
        )
        result = self.run_ok(code)
        self.assertEqual(result.stdout, "\rstep 0\rstep 1\rstep 2")
        self.assertGreaterEqual(len(result.of_type("stream")), 3)

    def test_both_streams(self):
        result = self.run_ok('println!("out"); eprintln!("err");')
        self.assertEqual((result.stdout, result.stderr), ("out\n", "err\n"))

    def test_a_display_is_updated_in_place_and_in_order(self):
        code = (
            'println!("before"); let shown: Display = display(MimeBundle::text("0"));'
            ' println!("between"); shown.update(MimeBundle::text("1")); println!("after");'
        )
        result = self.run_ok(code)
        kinds = [(m["msg_type"], m["content"].get("text")) for m in result.outputs]
        self.assertEqual(
            kinds,
            [
                ("stream", "before\n"),
                ("display_data", None),
                ("stream", "between\n"),
                ("update_display_data", None),
                ("stream", "after\n"),
            ],
        )
        shown, updated = result.of_type("display_data")[0], result.of_type("update_display_data")[0]
        self.assertEqual(shown["transient"]["display_id"], updated["transient"]["display_id"])
        self.assertEqual(updated["data"]["text/plain"], "1")

    def test_several_rich_outputs_in_one_cell(self):
        code = (
            'display(MimeBundle::text("t").html("<table></table>")); println!("between");'
            ' display(bar_chart("Loss", "nats", &[Bar::new("before", 3.2)]).bundle()); df!("b" => [0.5])?'
        )
        result = self.run_ok(code)
        kinds = [m["msg_type"] for m in result.outputs]
        self.assertEqual(kinds, ["display_data", "stream", "display_data", "execute_result"])
        for shown in (*result.of_type("display_data"), *result.of_type("execute_result")):
            self.assertIn("text/plain", shown["data"])
            self.assertIn("text/html", shown["data"])
        self.assertIn("application/vnd.plotly.v1+json", result.of_type("display_data")[1]["data"])

    def test_an_output_can_be_cleared(self):
        result = self.run_ok('println!("old"); tunebook::progress::clear(true); println!("new");')
        kinds = [m["msg_type"] for m in result.outputs]
        self.assertEqual(kinds, ["stream", "clear_output", "stream"])
        self.assertEqual(result.of_type("clear_output")[0], {"wait": True})

    def test_a_value_that_moves_a_variable_keeps_its_picture(self):
        """evcxr compiles such a cell a second time, without storing the variable."""
        made = 'let moved: DataFrame = df!("a" => [1, 2, 3])?;'
        for code in (made + ' moved.lazy().filter(col("a").gt(lit(1))).collect()?', made + "moved"):
            shown = self.run_ok(code).of_type("execute_result")[0]["data"]
            self.assertIn("<table", shown.get("text/html", ""), code)
        # One of an earlier cell, on a line of its own.
        self.run_ok("let kept: i32 = 4; " + made)
        shown = self.run_ok("let rows: usize = moved.height();\nmoved\n    .lazy()\n    .collect()?").of_type("execute_result")
        self.assertIn("<table", shown[0]["data"].get("text/html", ""))
        # It is gone, and nothing else is.
        self.assertEqual(error_of(self.kernel.execute("moved"))["ename"], "CompileError")
        self.assertEqual(self.run_ok("kept + rows as i32").text, "7")

    def test_a_use_after_a_move_in_a_cell_says_where_it_went(self):
        error = whole_error_of(self.kernel.execute("let gone: String = String::new(); drop(gone); gone.len()"))
        text = re.sub(r"\x1b\[[0-9;]*m", "", error)
        self.assertIn("value moved here", text)

    def test_cells_without_history_are_not_counted(self):
        before = self.run_ok("1").reply["execution_count"]
        self.assertEqual(self.run_ok("2", store_history=False).text, "2")
        self.assertEqual(self.run_ok("3").reply["execution_count"], before + 1)
        tail = self.ask(lambda: self.kernel.client.history(hist_access_type="tail", n=2, raw=True, output=False))
        self.assertEqual([code for _, _, code in tail["history"]], ["1", "3"])

    def test_silent_cells_show_and_count_nothing(self):
        before = self.run_ok("1").reply["execution_count"]
        silent = self.run_ok("2; display(MimeBundle::text(\"x\")); 2", silent=True)
        self.assertEqual([m["msg_type"] for m in silent.outputs], [])
        self.assertEqual(self.run_ok("3").reply["execution_count"], before + 1)
        tail = self.ask(lambda: self.kernel.client.history(hist_access_type="tail", n=2, raw=True, output=False))
        self.assertEqual([code for _, _, code in tail["history"]], ["1", "3"])

    def test_rich_values_from_data_stay_text(self):
        """No row can put a script, an image or a link into the notebook."""
        evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
        with tempfile.TemporaryDirectory() as folder:
            rows = [{"prompt": f"{evil} {i}", "completion": f"</td>{evil}"} for i in range(8)]
            with open(os.path.join(folder, "rows.jsonl"), "w") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            self.run_ok(f'let evil: &str = "{evil}"; let set: Dataset = Dataset::read("{folder}/rows.jsonl")?;')
        self.run_ok(f'let evil: String = "{evil}".to_owned();')
        self.run_ok("let clean: Dataset = set.clean(&Cleaning::default().drop_duplicates().normalize_whitespace())?;")
        values = [
            "set",
            "set.profile()",
            "clean.report()",
            "set.split(&Split::holdout(0.5).seed(1))?",
            'df!("a" => [evil.as_str()], evil.as_str() => [1])?',
            "vec![evil.clone()]",
            "evil",
            "side_by_side(&[&evil], &[&[evil.clone()]])",
            "bar_chart(&evil, &evil, &[Bar::new(&evil, 1.0)])",
            "display(MimeBundle::text(&evil)); for _ in progress(0..3, &evil) {}",
        ]
        shown = 0
        for value in values:
            for message in self.run_ok(value).outputs:
                html = message["content"].get("data", {}).get("text/html", "")
                shown += "alert" in html
                for tag in ("<script", "<img src=x", "</td><script"):
                    self.assertNotIn(tag, html.replace("\n", " "), value)
        # Else the test would look at nothing.
        self.assertGreaterEqual(shown, 5)

    def test_input(self):
        started = self.kernel.start('input("first: name?").to_uppercase()', allow_stdin=True)
        request = self.kernel.client.get_stdin_msg(timeout=60)
        self.assertEqual(request["content"], {"prompt": "first: name?", "password": False})
        self.kernel.client.input("ada\nlove")
        self.assertEqual(self.kernel.finish(*started).text.strip('"'), "ADA\\nLOVE")

    def test_a_password_is_asked_for_as_one(self):
        started = self.kernel.start('password("token?").len()', allow_stdin=True)
        self.assertEqual(self.kernel.client.get_stdin_msg(timeout=60)["content"], {"prompt": "token?", "password": True})
        self.kernel.client.input("12345")
        self.assertEqual(self.kernel.finish(*started).text, "5")

    def test_a_question_that_nobody_can_answer_is_answered_with_nothing(self):
        self.assertEqual(self.run_ok('input("name?").len()', allow_stdin=False).text, "0")

    def test_standard_input_is_empty(self):
        code = "let mut line = String::new(); std::io::stdin().read_line(&mut line)?"
        self.assertEqual(self.run_ok(code, timeout=60).text, "0")

    def test_a_program_that_a_cell_starts_gets_no_instructions(self):
        self.run_ok('std::process::Command::new("cat").stdout(std::process::Stdio::null()).spawn()?;')
        self.assertEqual(self.run_ok("1 + 1", timeout=60).text, "2")


@contextmanager
def memory_limit(test, pid, limit_bytes):
    """Puts a process into a memory cgroup of its own."""
    name = f"tunebook-test-{os.getpid()}"
    with open("/proc/self/cgroup") as file:
        own = {line.split(":")[1]: line.strip().split(":", 2)[2] for line in file}
    if "memory" in own:
        folder, key = f"/sys/fs/cgroup/memory{own['memory']}/{name}", "memory.limit_in_bytes"
    else:
        folder, key = f"/sys/fs/cgroup{own.get('', '')}/{name}", "memory.max"
    try:
        os.mkdir(folder)
    except OSError as error:
        test.skipTest(f"no memory cgroup can be made here: {error}")
    try:
        try:
            with open(os.path.join(folder, key), "w") as file:
                file.write(str(limit_bytes))
            with open(os.path.join(folder, "cgroup.procs"), "w") as file:
                file.write(str(pid))
        except OSError as error:
            test.skipTest(f"no memory cgroup can be used here: {error}")
        yield
    finally:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                os.rmdir(folder)
                break
            except OSError:
                time.sleep(0.2)


class Failures(WithKernel):
    def test_a_panic_fails_the_cell_and_keeps_the_variables(self):
        self.run_ok("let kept: i32 = 7;")
        error = error_of(self.kernel.execute('panic!("rank {}", 0)'))
        self.assertEqual((error["ename"], error["evalue"]), ("Panic", "rank 0"))
        self.assertEqual(self.run_ok("kept").text, "7")

    def test_a_failed_question_mark_fails_the_cell(self):
        self.run_ok("let kept: i32 = 8;")
        error = error_of(self.kernel.execute('let n: i32 = "x".parse::<i32>()?;'))
        self.assertEqual(error["evalue"], "invalid digit found in string")
        self.assertEqual(self.run_ok("kept").text, "8")

    def test_a_field_that_is_not_there_names_those_that_are(self):
        self.run_ok("#[derive(Default)] struct Plan { pace: u8, weight: u8 }")
        error = whole_error_of(self.kernel.execute("let plan: Plan = Plan { speed: 1, ..Default::default() };"))
        self.assertIn("available fields are: `pace`, `weight`", error)

    def test_a_compile_error_is_one_message(self):
        result = self.kernel.execute("let n: i32 = \"x\"; nowhere();")
        self.assertEqual(error_of(result)["ename"], "CompileError")
        text = whole_error_of(result)
        self.assertIn("nowhere", re.sub(r"\x1b\[[0-9;]*m", "", text))
        self.assertIn("\x1b[", text, "the compiler's colours")

    def test_a_compile_error_is_marked_at_its_place_among_any_letters(self):
        for code, line, column in [
            ('// 猫 ünïcode\nlet größe: u32 = "🦀é";', 2, 18),
            (':help ééé\nlet größe: u32 = "🦀é";', 2, 18),
            ('let a = "日本語"; let größe: u32 = a;', 1, 33),
        ]:
            text = re.sub(r"\x1b\[[0-9;]*m", "", whole_error_of(self.kernel.execute(code)))
            self.assertIn("mismatched types", text)
            self.assertRegex(text, rf"cell \d+:{line}:{column} ", text)
            self.assertIn("größe", text)
            self.assertNotIn("src/lib.rs", text)

    def test_a_dead_process_names_its_signal_and_the_next_cell_runs(self):
        self.run_ok("let lost: i32 = 1;")
        error = error_of(self.kernel.execute('println!("last words"); std::process::abort()'))
        self.assertEqual(error["ename"], "ProcessDied")
        self.assertIn("SIGABRT", error["evalue"])
        self.assertIn("variables are lost", "\n".join(error["traceback"]))
        self.assertEqual(self.run_ok("1 + 1").text, "2")

    def test_what_was_printed_before_the_end_is_not_lost(self):
        result = self.kernel.execute('println!("last words"); std::process::abort()')
        self.assertEqual(result.stdout, "last words\n")

    def test_an_allocation_that_is_refused_is_named_as_such(self):
        error = error_of(self.kernel.execute("let hog: Vec<u8> = vec![1; 1 << 46];"))
        self.assertEqual(error["ename"], "OutOfMemory")
        self.assertIn("70368744177664 bytes", error["evalue"])

    def test_a_process_that_the_system_ends_for_want_of_memory_is_named_as_such(self):
        pid = int(self.run_ok("std::process::id()").text)
        with memory_limit(self, pid, 256_000_000):
            hog = "let mut hog: Vec<Vec<u8>> = Vec::new(); loop { hog.push(vec![1; 16 << 20]); }"
            error = error_of(self.kernel.execute(hog, timeout=300))
        self.assertEqual(error["ename"], "OutOfMemory", error)
        self.assertIn("SIGKILL", error["evalue"])
        self.assertIn("variables are lost", "\n".join(error["traceback"]))
        self.assertEqual(self.run_ok("1 + 1").text, "2")

    def test_cells_behind_an_error_are_aborted(self):
        slow = "std::thread::sleep(std::time::Duration::from_millis(500)); panic!(\"stop\")"
        started = [self.kernel.start(code) for code in (slow, "1 + 1")]
        replies = [self.kernel.client.get_shell_msg(timeout=60)["content"]["status"] for _ in started]
        self.assertEqual(replies, ["error", "aborted"])
        started = [self.kernel.start(slow, stop_on_error=False), self.kernel.start("1 + 1")]
        replies = [self.kernel.client.get_shell_msg(timeout=60)["content"]["status"] for _ in started]
        self.assertEqual(replies, ["error", "ok"])

    def test_cells_behind_a_stopped_one_are_aborted(self):
        slow = 'let mut done: i32 = 0; for i in progress(0..1000, "loop") { std::thread::sleep(std::time::Duration::from_millis(10)); done = i; }'
        for options, expected in [({}, ["ok", "aborted", "aborted"]), ({"stop_on_error": False}, ["ok", "ok", "ok"])]:
            started = [self.kernel.start(slow, **options), self.kernel.start("1 + 1"), self.kernel.start("2 + 2")]
            before = self.kernel.outputs_until(started[0][0], lambda m: m["msg_type"] == "display_data", timeout=120)
            self.kernel.manager.interrupt_kernel()
            replies = [self.kernel.client.get_shell_msg(timeout=120)["content"]["status"] for _ in started]
            self.assertEqual(replies, expected)
            idle = lambda m: m["msg_type"] == "status" and m["content"]["execution_state"] == "idle"  # noqa: E731
            outputs = before + self.kernel.outputs_until(started[0][0], idle)
            told = "".join(m["content"]["text"] for m in outputs if m["msg_type"] == "stream")
            self.assertEqual("the 2 cells that wait behind this one will not run" in told, not options, told)
            # What is sent when the cell is over runs.
            self.assertEqual(self.run_ok("done < 900").text, "true")


class Statics(WithKernel):
    """Each cell is a library of its own: a static starts anew in every cell, which is said."""

    def test_a_static_is_said_to_start_anew(self):
        first = self.kernel.execute(
            "use std::sync::atomic::{AtomicU32, Ordering::SeqCst};\n"
            "static SEEN: AtomicU32 = AtomicU32::new(0);\n"
            "fn bump() -> u32 { SEEN.fetch_add(1, SeqCst) + 1 }"
        )
        self.assertIn("the static `SEEN` starts anew in every cell", first.stderr)
        self.assertEqual(self.run_ok("bump()").text, "1")
        self.assertEqual(self.run_ok("bump()").text, "1")

    def test_functions_find_what_a_macro_defines(self):
        code = (
            "use std::cell::Cell;\n"
            "thread_local! { static HERE: Cell<u32> = Cell::new(40); static THERE: Cell<u32> = const { Cell::new(2) }; }\n"
            "fn sum() -> u32 { HERE.with(Cell::get) + THERE.with(Cell::get) }"
        )
        for _ in range(2):
            self.run_ok(code)
            self.assertEqual(self.run_ok("sum()").text, "42")
        self.assertEqual(self.run_ok("HERE.with(|n| { n.set(n.get() + 1); n.get() })").text, "41")


class Closures(WithKernel):
    """A closure lives in its cell, and takes nothing with it."""

    def test_a_closure_is_used_in_its_cell(self):
        self.run_ok("let k: i32 = 3;")
        result = self.run_ok("let add = |x: i32| x + k;\nlet sum: i32 = add(2);\nsum")
        self.assertEqual(result.text, "5")
        self.assertIn("the closure `add` lives in this cell only", result.stderr)
        self.assertEqual(self.run_ok("(k, sum)").text, "(3, 5)")
        # Alone in its cell, too.
        self.assertIn("the closure `double`", self.run_ok("let double = |x: i32| 2 * x;").stderr)
        result = self.run_ok("let mut seen: Vec<i32> = vec![];\nlet mut see = |x: i32| {\n    seen.push(x);\n};\nsee(1);\nsee(2);\nseen.len()")
        self.assertEqual(result.text, "2")
        self.assertEqual(self.run_ok("seen").text, "[1, 2]")
        self.assertIn("`add`", error_of(self.kernel.execute("add(1)"))["evalue"])
        wrong = error_of(self.kernel.execute("let more = |x: i32| x + k;\nmore(missing)"))
        self.assertIn("cannot find value `missing`", wrong["evalue"])
        boxed = self.run_ok("let kept: Box<dyn Fn(i32) -> i32> = Box::new(|x| x + 1);")
        self.assertNotIn("closure", boxed.stderr)
        self.assertEqual(self.run_ok("kept(1)").text, "2")


class Lent(WithKernel):
    """A variable that lends from another value, or whose type nobody can write, is of use in its cell."""

    def test_a_reference_is_used_in_its_cell(self):
        self.run_ok('let words: Vec<String> = vec!["first".into(), "second".into()];')
        for cell, name, value in [
            ("let one = &words[0];\none.len()", "one", "5"),
            ("let two: &str = &words[1];\ntwo.len()", "two", "6"),
            ("let three = &vec![1, 2, 3][1..];\nthree.len()", "three", "2"),
            ("let made: Vec<u8> = vec![7];\nlet four = &made;\nlet five = four.iter();\nfive.clone().sum::<u8>()", "five", "7"),
            ("let\n    six =\n    words.iter()\n    .map(|word| word.len());\nsix.sum::<usize>()", "six", "11"),
            ("let mut list: Vec<u8> = vec![1];\nlet seven = list.first_mut().ok_or(\"empty\")?;\n*seven += 1;\nlist", "seven", "[2]"),
        ]:
            with self.subTest(cell=cell):
                result = self.run_ok(cell)
                self.assertEqual(result.text, value)
                self.assertIn(f"`{name}` lives in this cell only", result.stderr)
                gone = error_of(self.kernel.execute(f"{name}.clone()"))
                self.assertIn("lived in cell", "\n".join(gone["traceback"]))
        # What does not lend is kept, also from the same cells.
        self.assertEqual(self.run_ok("(words.len(), made, list)").text, "(2, [7], [2])")
        self.assertEqual(self.run_ok('let text = "for ever";').stderr, "")
        self.assertEqual(self.run_ok("text").text, '"for ever"')

    def test_what_stands_beside_it_is_kept(self):
        self.run_ok('let words: Vec<String> = vec!["b".into(), "añb".into()];\nlet mut count: usize = 99;\nlet big: Vec<u8> = vec![1];')
        result = self.run_ok("let (count, longest) = (words.len(), words.iter().max());\nlongest.map(|word| word.len())")
        self.assertIn("`longest` lives", result.stderr)
        self.assertNotIn("`count`", result.stderr)
        self.assertEqual(self.run_ok("count").text, "2", "not the old value")
        self.run_ok("let (mut moved, head) = (big, &words[0]);\nmoved.push(2);\nhead.len()")
        self.assertEqual(self.run_ok("moved").text, "[1, 2]")
        result = self.run_ok("struct Pair { one: u8, two: Vec<u8> }\nlet pair = Pair { one: 1, two: vec![2] };\nlet Pair { one, two } = &pair;\none + two[0]")
        self.assertEqual(result.text, "3")
        for name in ("one", "two"):
            self.assertIn(f"`{name}` lives", result.stderr)

    def test_a_type_that_nobody_can_write(self):
        for cell, value in [
            ("let turns = (0..3).map(|i| i * 2);\nturns.sum::<i32>()", "6"),
            ("fn twice() -> impl Iterator<Item = u8> { 0..2 }\nlet both = twice();\nboth.count()", "2"),
        ]:
            with self.subTest(cell=cell):
                result = self.run_ok(cell)
                self.assertEqual(result.text, value)
                self.assertIn("lives in this cell only", result.stderr)

    def test_the_last_of_a_name_counts(self):
        self.run_ok('let words: Vec<String> = vec!["b".into()];')
        for cell, value in [
            ("let q = 5;\nlet q = q.to_string();\nq", '"5"'),
            ("let q = &words[0];\nlet q = q.to_string();\nq", '"b"'),
            ("let q = |x: i32| x + 1;\nlet q = q(3);\nq", "4"),
            ('let (q, r) = (1, 2);\nlet q = "a b";\nlet q: Vec<&str> = q.split(\' \').collect();\n(q.len(), r)', "(2, 2)"),
        ]:
            with self.subTest(cell=cell):
                result = self.run_ok(cell)
                self.assertEqual((result.text, result.stderr), (value, ""))
        self.assertEqual(self.run_ok("(q.len(), r)").text, "(2, 2)")

    def test_shell_commands_run_once(self):
        with tempfile.NamedTemporaryFile() as file:
            result = self.run_ok(f"let list = vec![1, 2];\n!echo once | tee -a {file.name}\nlet first = &list[0];\nlet count = list.iter().map(|x| x + 1);\nprintln!(\"{{first}} {{}}\", count.count());")
            self.assertEqual(file.read(), b"once\n")
            self.assertIn("1 2\n", result.stdout)
            shown = json.dumps([message["content"] for message in result.outputs])
            self.assertEqual(shown.count("once"), 1)
        # What stands behind one keeps its place.
        self.run_ok("struct Cat;")
        self.assertEqual(self.run_ok("!echo miaow\nimpl Cat { fn legs(&self) -> u8 { 4 } }\nlet cat: Cat = Cat;\ncat.legs()").text[-1], "4")

    def test_the_prelude_has_a_function_of_that_name(self):
        self.run_ok("use tunebook::prelude::*;\nlet words: Vec<u8> = vec![7];\nlet first = &words[0];\nprintln!(\"{first}\");")
        for cell in ('println!("{first}");', "first", "first.count_ones()"):
            said = "\n".join(error_of(self.kernel.execute(cell))["traceback"])
            self.assertIn("it lived in cell", said, cell)

    def test_what_is_wrong_besides_is_told(self):
        self.run_ok("let numbers: Vec<u32> = vec![1, 2];")
        wrong = error_of(self.kernel.execute("let first = &numbers[0];\nfirst + missing"))
        self.assertIn("cannot find value `missing`", wrong["evalue"])
        wrong = error_of(self.kernel.execute("let first = &numbers[0];\ndrop(numbers);\nprintln!(\"{first}\");"))
        self.assertIn("cannot move out of `numbers`", wrong["evalue"])
        # A thread may outlive the cell.
        cell = "let first = &numbers[0];\nstd::thread::spawn(move || first + 1).join().is_ok()"
        self.assertIn("does not live long enough", error_of(self.kernel.execute(cell))["evalue"])
        self.assertEqual(self.run_ok("numbers").text, "[1, 2]")
        # A guard stands until the cell's end, where its lock is stored.
        cell = "let lock = std::sync::Mutex::new(3);\nlet guard = lock.lock().unwrap();\n*guard"
        self.assertIn("put the lines into `{ }`", "\n".join(error_of(self.kernel.execute(cell))["traceback"]))
        self.assertEqual(self.run_ok("let lock = std::sync::Mutex::new(3);\n{ let guard = lock.lock().unwrap(); *guard }").text, "3")
        # A name that is kept already.
        self.run_ok("let last: u32 = 9;")
        self.assertIn("lends", "\n".join(error_of(self.kernel.execute("let last = &numbers[1];\n*last"))["traceback"]))
        self.assertEqual(self.run_ok("last").text, "9")


class Kept(WithKernel):
    """A cell that fails keeps what was there before, also under the names that it would have given new values."""

    def test_a_name_keeps_its_old_value(self):
        self.run_ok('let name: String = "old".to_owned();\nlet mut count: u32 = 1;')
        for failing in [
            'let name: String = std::env::var("NO_SUCH_VARIABLE_HERE")?;',
            'let name: u64 = "x".parse()?;',
            'let name: String = panic!("no");',
            'let count: u32 = 2;\nlet name: String = format!("{name}{}", "x".parse::<u32>()?);',
            'let (name, count): (u8, u8) = (1, 2);\nErr("no")?;',
        ]:
            self.assertEqual(self.kernel.execute(failing).status, "error", failing)
            self.assertEqual(self.run_ok("(name.as_str(), count)").text, '("old", 1)', failing)
        self.run_ok("let name: u8 = 7;")
        self.assertEqual(self.run_ok("name").text, "7")

    def test_a_cell_that_returns_early_succeeds_and_says_what_it_did_not_store(self):
        self.run_ok('let name: String = "old".to_owned();')
        result = self.run_ok("let count: u8 = 1;\nif count == 1 { return Ok(()); }\nlet later: u8 = 2;")
        self.assertIn("the cell returned before its end. Of its variables, not kept: ", result.stderr)
        for variable in ["count", "later"]:
            self.assertIn(variable, result.stderr)
            self.assertIn(f"cannot find value `{variable}`", error_of(self.kernel.execute(variable))["evalue"])
        result = self.run_ok("let name: u8 = 3;\nreturn Ok(());")
        self.assertIn("as before the cell: name", result.stderr)
        self.assertEqual(self.run_ok("name").text, '"old"')
        # Nothing to say where it reaches its end, or has nothing of its own.
        for code in ["let count: u8 = 1;\nif count == 2 { return Ok(()); }", "return Ok(());"]:
            self.assertNotIn("[kernel]", self.run_ok(code).stderr)
        self.assertEqual(self.run_ok("count").text, "1")
        self.assertEqual(self.run_ok("name").text, '"old"')

    def test_a_value_that_the_cell_moves_goes(self):
        self.run_ok('let words: Vec<String> = vec!["a".to_owned()];\nlet other: u8 = 1;')
        self.run_ok("let words: usize = words.into_iter().count();")
        self.assertEqual(self.run_ok("words").text, "1")
        self.run_ok('let words: Vec<String> = vec!["a".to_owned()];')
        moving = "let other: u8 = 2;\nlet words: usize = words.into_iter().count() + \"x\".parse::<usize>()?;"
        self.assertEqual(self.kernel.execute(moving).status, "error")
        self.assertEqual(self.run_ok("other").text, "1")
        self.assertIn("cannot find value `words`", error_of(self.kernel.execute("words"))["evalue"])

    def test_stop_keeps_the_old_value(self):
        self.run_ok("use tunebook::prelude::*;\nlet kept: Vec<u8> = vec![1, 2];")
        slow = (
            'let kept: Vec<u8> = { println!("go"); loop { interrupt::check()?;'
            " std::thread::sleep(std::time::Duration::from_millis(10)); } };"
        )
        self.stopped(slow)
        self.assertEqual(self.run_ok("kept").text, "[1, 2]")


class Unused(WithKernel):
    def test_a_result_that_nobody_looks_at_is_told(self):
        result = self.run_ok('std::fs::remove_file("/nowhere/to/be/found");')
        self.assertRegex(result.stderr, "unused `.*Result` that must be used: cell")
        self.assertIn("write `?`", result.stderr)
        self.assertEqual(self.run_ok('let _ = std::fs::remove_file("/nowhere/to/be/found");').stderr, "")
        self.run_ok('fn quiet() { std::fs::remove_file("/nowhere"); }')
        self.assertEqual(self.run_ok("quiet();").stderr, "")


class Redefined(WithKernel):
    """A value whose type is defined anew is lost with a word, and never read as what it is not."""

    def lost(self, before, again, use, name):
        self.run_ok(before)
        self.run_ok("let other: i32 = 5;")
        self.run_ok(again)
        self.told(self.kernel.execute(use), name)
        self.assertEqual(self.run_ok("other").text, "5")

    def told(self, result, name):
        error = error_of(result)
        self.assertIn(f"cannot find value `{name}`", error["evalue"])
        self.assertIn(f"The variable {name} is lost, as its type was defined anew.", result.stderr)

    def test_a_field_of_another_type(self):
        self.lost(
            "struct Setting { rate: u32 }\nlet setting = Setting { rate: 3 };",
            "struct Setting { rate: f32 }",
            'println!("{}", setting.rate);',
            "setting",
        )
        self.lost(
            "struct Named { name: u64 }\nlet named = Named { name: 7 };",
            "struct Named { name: String }",
            'println!("{}", named.name.len());',
            "named",
        )

    def test_a_type_within_the_type(self):
        self.lost(
            "struct Inner(u64);\nstruct Outer { inner: Inner }\nlet outer = vec![Outer { inner: Inner(1) }];",
            "struct Inner(String);",
            'println!("{}", outer[0].inner.0.len());',
            "outer",
        )

    def test_a_trait_behind_dyn(self):
        self.lost(
            "trait Sound { fn a(&self) -> u8; fn b(&self) -> u8; }\n"
            "impl Sound for u8 { fn a(&self) -> u8 { 1 } fn b(&self) -> u8 { 2 } }\n"
            "let sound: Box<dyn Sound> = Box::new(0u8);",
            "trait Sound { fn b(&self) -> u8; fn a(&self) -> u8; }\n"
            "impl Sound for u8 { fn a(&self) -> u8 { 1 } fn b(&self) -> u8 { 2 } }",
            "sound.a()",
            "sound",
        )

    def test_what_changes_no_value_keeps_it(self):
        self.run_ok("struct Kept { n: u32 }\nimpl Kept { fn n(&self) -> u32 { self.n } }\nlet kept = Kept { n: 3 };")
        self.run_ok("#[derive(Debug)]\nstruct Kept { n: u32 } // the same\nimpl Kept { fn n(&self) -> u32 { self.n + 1 } }")
        self.assertEqual(self.run_ok("kept.n()").text, "4")

    def test_a_type_of_an_edited_dependency(self):
        # It stays as long as the kernel, which needs it for every later cell.
        folder = tempfile.TemporaryDirectory()
        self.addClassCleanup(folder.cleanup)
        folder = folder.name
        os.mkdir(os.path.join(folder, "src"))
        source = os.path.join(folder, "src/lib.rs")

        def write(text):
            with open(source, "w", encoding="utf-8") as file:
                file.write(text)

        with open(os.path.join(folder, "Cargo.toml"), "w", encoding="utf-8") as file:
            file.write('[package]\nname = "shapes"\nversion = "0.1.0"\nedition = "2024"\n')
        write("pub struct S { pub a: u64 } pub fn s() -> S { S { a: 7 } }")
        self.run_ok(f':dep shapes = {{ path = "{folder}" }}\nlet s = shapes::s();', timeout=300)
        self.assertEqual(self.run_ok("s.a").text, "7")
        write("pub struct S { pub a: String } pub fn s() -> S { S { a: String::new() } }")
        self.told(self.kernel.execute("s.a.len()", timeout=300), "s")


class Requests(WithKernel):
    def test_completion_and_inspection_while_a_cell_runs(self):
        self.run_ok("let answer: Option<i32> = Some(1);")
        started = self.kernel.start("std::thread::sleep(std::time::Duration::from_secs(4));")
        time.sleep(1.5)
        before = time.monotonic()
        completed = self.ask(lambda: self.kernel.client.complete("ans"))
        inspected = self.ask(lambda: self.kernel.client.inspect("answer"))
        self.assertLess(time.monotonic() - before, 3)  # two requests, one second each on a machine of its own
        self.assertIn("answer", completed["matches"])
        self.assertIn("Option<i32>", inspected["data"]["text/plain"])
        self.kernel.finish(*started)

    def test_comms_are_answered(self):
        self.assertEqual(self.ask(lambda: self.kernel.client.comm_info())["comms"], {})

    def test_messages_to_a_comm_that_is_gone_end_idle(self):
        client = self.kernel.client
        for msg_type in ("comm_msg", "comm_close"):
            sent = client.session.msg(msg_type, {"comm_id": "gone", "data": {}})
            client.shell_channel.send(sent)
            states = self.kernel.outputs_until(
                sent["header"]["msg_id"], lambda m: m["content"].get("execution_state") == "idle", timeout=20
            )
            self.assertEqual([m["msg_type"] for m in states], ["status", "status"])

    def test_code_is_parsed_to_tell_whether_it_is_whole(self):
        for code, status in (
            ("fn f() -> i32 {", "incomplete"),
            ("match 1 { 1 => (), _ => () }", "complete"),
            ('let s = "{ not a block";', "complete"),
            ("vec![1, 2", "incomplete"),
            ("fn f() }", "invalid"),
        ):
            self.assertEqual(self.ask(lambda code=code: self.kernel.client.is_complete(code))["status"], status, code)

    def test_history_by_range_and_pattern(self):
        first = self.run_ok("100 + 1").reply["execution_count"]
        self.run_ok("100 + 2")
        self.run_ok("100 + 1")

        def history(**asked):
            return self.ask(lambda: self.kernel.client.history(raw=True, output=False, **asked))["history"]

        found = history(hist_access_type="range", session=0, start=first, stop=first + 2)
        self.assertEqual(found, [[0, first, "100 + 1"], [0, first + 1, "100 + 2"]])
        found = history(hist_access_type="search", pattern="100 +*", unique=True)
        self.assertEqual(sorted(code for _, _, code in found), ["100 + 1", "100 + 2"])
        self.assertEqual(history(hist_access_type="search", pattern="nothing like it*"), [])

    def test_a_comm_nobody_knows_is_closed(self):
        client = self.kernel.client
        opened = client.session.msg("comm_open", {"comm_id": "c1", "target_name": "nobody", "data": {}})
        client.shell_channel.send(opened)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            message = client.get_iopub_msg(timeout=20)
            if message["msg_type"] == "comm_close":
                self.assertEqual(message["content"]["comm_id"], "c1")
                return
        self.fail("no comm_close")


if __name__ == "__main__":
    unittest.main()
