"""jupyter_kernel_test's own suite on a kernel: ours, or (KERNEL=tunebook-stock) the stock one for comparison.

Every sample that the suite asks for is given, a pager excepted: Rust has none.
"""

import os
import unittest

import jupyter_kernel_test


class Suite(jupyter_kernel_test.KernelTests):
    kernel_name = os.environ.get("KERNEL", "tunebook")
    language_name = "rust"
    file_extension = ".rs"
    code_hello_world = 'println!("hello, world");'
    code_stderr = 'eprintln!("oops");'
    completion_samples = [{"text": "let answer_of_all = 42; answer_of", "matches": {"answer_of_all"}}]
    complete_code_samples = ["1 + 1", "fn f() -> i32 {\n    1\n}", 'println!("x");', "// a comment"]
    incomplete_code_samples = ["fn f() {", "let x =", 'println!("x', "vec![1,"]
    invalid_code_samples = ["1 + 1)", "let let;"]
    code_generate_error = 'panic!("on purpose");'
    code_execute_result = [
        {"code": "20 + 22", "result": "42"},
        {"code": "vec![1, 2]", "result": "[1, 2]"},
    ]
    code_display_data = [
        {"code": 'display(MimeBundle::text("x").html("<b>x</b>"));', "mime": "text/html"},
    ]
    code_history_pattern = "20 + 2*"
    supported_history_operations = ("tail", "range", "search")
    code_inspect_sample = "Dataset"
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # The suite gives a cell 15 s, and a kernel whose crates have changed builds them before its first one.
        cls.kc.execute_interactive("1", timeout=600, output_hook=lambda message: None)

    code_clear_output = "tunebook::progress::clear(false);"


if __name__ == "__main__":
    unittest.main()
