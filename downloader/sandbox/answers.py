"""What the platform's document shows: the answers of its examples, key by key in its order."""

from __future__ import annotations

from collections.abc import Mapping

from downloader.sandbox.platform_checks import RefusedError

__all__ = [
    "SAMPLE_TASK_ID",
    "SAMPLE_TASK_RESULT",
    "question_size",
    "survey_projects",
    "survey_target",
    "wechat_profile",
]

SAMPLE_TASK_ID = "69909614-9e77-4fbd-b437-4f5b284e3dcc"
_SAMPLE_FILE = (
    "https://bge-developer.oss-cn-shenzhen.aliyuncs.com/"
    "DUS-12345678912-F4QPfredao9slVB2ua4vVeOryOHsSsC62wM1TUmm/"
    "20210829TZ-2bb87999f5e646f589598976a51914a0/E-B19137107158_233_1630209166.vcf.gz"
)
SAMPLE_TASK_RESULT = [f"{_SAMPLE_FILE}.tbi", _SAMPLE_FILE]

_PROJECTS = {
    "P-W19126783988": {
        "project_id": "P-W19126783988",
        "comment": "低深度全基因组",
        "release_survey_id": 5,
    }
}
_TARGETED_USERS = [{"user_id": "00000000000000000001"}]
_SAMPLE_USER_ID = "5c033e04f89dd15e44d48b7d"
_QUESTION_SIZES = {_SAMPLE_USER_ID: 22}
_PROFILES: dict[str, dict[str, object]] = {
    _SAMPLE_USER_ID: {
        "openid": {
            "home": "oyrEv5Qpn4dQTt-CAYZ8vMFmFl94",
            "wgs": "oemn74iTBGzLMAX5D8Pgl-P1zXCA",
            "bger": "oc9_-1MsHmeM4jC18RT2xbiO1WwY",
        },
        "nickname": "刘小姐",
    }
}


def survey_projects(params: Mapping[str, str]) -> dict[str, object]:
    """Answer with those of the projects that exist."""
    wanted = params["project_ids"].split(",")
    found = [_PROJECTS[one] for one in wanted if one in _PROJECTS]
    return {
        "limit": 50,
        "total": len(found),
        "result": found,
        "count": len(found),
        "page": 1,
        "pages": 1 if found else 0,
    }


def survey_target(params: Mapping[str, str]) -> dict[str, object]:
    """Answer with the one user whom every condition finds."""
    limit, page = int(params.get("limit", 50)), int(params.get("page", 1))
    found = _TARGETED_USERS[(page - 1) * limit : page * limit]
    return {
        "total": len(_TARGETED_USERS),
        "page": page,
        "count": len(found),
        "limit": limit,
        "pages": -(-len(_TARGETED_USERS) // limit),
        "result": found,
    }


def question_size(params: Mapping[str, str]) -> dict[str, object]:
    """Answer with the number of questions that a user has answered; nobody knows others: 0."""
    return {"total": _QUESTION_SIZES.get(params["user_id"], 0)}


def wechat_profile(params: Mapping[str, str]) -> dict[str, object]:
    """Answer with a user's profile."""
    profile = _PROFILES.get(params["user_id"])
    if profile is None:
        raise RefusedError(1404, "用户不存在 (no such user)")
    return profile
