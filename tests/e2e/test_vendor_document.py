"""The examples of the platform's document, typed as they stand there, print what stands there."""

from downloader.sandbox import answers

pytest_plugins = ["e2e_helpers"]

SCRIPT = """\
from downloader import PrivateAPI

private = PrivateAPI(
    app_key, app_secret, endpoint=endpoint, max_retries=3, timeout=16, verbose=False)

result = private.task_result('69909614-9e77-4fbd-b437-4f5b284e3dcc')
print(result.dumps(indent=4))
print(private.survey_projects('P-W19126783988').dumps(indent=4))
AND = [{'data_element_identifier_de': 'DE0001', 'operator': '=', 'concept_code': 'C1'}]
print(private.survey_target(AND=AND, OR=None, limit=50, page=1).dumps(indent=4))
print(private.question_size('5c033e04f89dd15e44d48b7d'))
print(private.wechat_profile('5c033e04f89dd15e44d48b7d').dumps(indent=4))
"""
PRINTED = f"""\
{{
    "status": "SUCCESS",
    "result": [
        "{answers.SAMPLE_TASK_RESULT[0]}",
        "{answers.SAMPLE_TASK_RESULT[1]}"
    ]
}}
{{
    "limit": 50,
    "total": 1,
    "result": [
        {{
            "project_id": "P-W19126783988",
            "comment": "低深度全基因组",
            "release_survey_id": 5
        }}
    ],
    "count": 1,
    "page": 1,
    "pages": 1
}}
{{
    "total": 1,
    "page": 1,
    "count": 1,
    "limit": 50,
    "pages": 1,
    "result": [
        {{
            "user_id": "00000000000000000001"
        }}
    ]
}}
Model({{'total': 22}})
{{
    "openid": {{
        "home": "oyrEv5Qpn4dQTt-CAYZ8vMFmFl94",
        "wgs": "oemn74iTBGzLMAX5D8Pgl-P1zXCA",
        "bger": "oc9_-1MsHmeM4jC18RT2xbiO1WwY"
    }},
    "nickname": "刘小姐"
}}
"""


async def test_the_documents_examples_print_what_the_document_shows(program, sandbox):
    """Nothing is closed in them, and the script ends all the same, without a word of warning."""
    given = {
        "app_key": sandbox.app_key,
        "app_secret": sandbox.app_secret,
        "endpoint": sandbox.endpoint,
    }
    script = program.cwd / "example.py"
    script.write_text(
        "".join(f"{name} = {value!r}\n" for name, value in given.items()) + SCRIPT,
        encoding="utf-8",
    )
    running = await program.start_python("-W", "error", "-X", "dev", script)
    ended = await running.ends()
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert ended.stdout == PRINTED
