"""Many requests at once."""

import asyncio

from muster import CHAT, Muster, user
from questions import mixed


def test_requests_at_the_same_time_get_their_own_answers(fleet: Muster):
    asked = mixed(32)
    assert len(asked) == 32

    async def answers() -> list[str]:
        async with fleet.async_client() as client:
            return await asyncio.gather(*(answer(client, question) for question, _ in asked))

    async def answer(client, question: str) -> str:
        completion = await client.chat.completions.create(model=CHAT, messages=user(question), temperature=0)
        return completion.choices[0].message.content

    assert asyncio.run(answers()) == [answer for _, answer in asked]


def test_streams_at_the_same_time_get_their_own_answers(fleet: Muster):
    asked = mixed(16)

    async def answers() -> list[str]:
        async with fleet.async_client() as client:
            return await asyncio.gather(*(answer(client, question) for question, _ in asked))

    async def answer(client, question: str) -> str:
        stream = await client.chat.completions.create(
            model=CHAT, messages=user(question), temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(answers()) == [answer for _, answer in asked]
