"""Written by tools/litellm_names.py."""

VERSION = "1.106.2"
PROVIDERS = frozenset(
    """
a2a a2a_agent ai21 ai21_chat aiml aiohttp_openai amazon_nova anthropic anthropic_text apertis assemblyai
auto_router aws_polly aws_textract azure azure_ai azure_speech azure_text baseten bedrock bedrock_mantle
black_forest_labs bytez cerebras charity_engine chatgpt chutes clarifai cloudflare codestral cognition
cohere cohere_chat cometapi compactifai cortecs cursor custom custom_openai darkbloom dashscope
databricks datarobot deepgram deepinfra deepseek docker_model_runner dotprompt edenai elevenlabs empower
fal_ai featherless_ai fireworks_ai friendliai galadriel gdc gemini gigachat github github_copilot
gradient_ai groq helicone heroku hosted_vllm huggingface humanloop hyperbolic inception infinity jina_ai
lambda_ai langflow langfuse langgraph lemonade libertai litellm_agent litellm_proxy llamafile lm_studio
manus maritalk meta meta_llama milvus minimax mistral modelscope mongodb moonshot morph nadir nano-gpt
nebius neosantara nlp_cloud novita nscale nvidia_nim nvidia_riva oci ollama ollama_chat oobabooga openai
openai_like openrouter ovhcloud parasail perplexity petals pg_vector pinstripes poe predibase prism
publicai qwen_ai_platform qwencloud ragflow recraft reducto reka replicate runwayml s3_vectors sagemaker
sagemaker_chat sagemaker_nova sail sambanova sap scaleway scx-ai snowflake soniox stability
strands_decider synthetic tencent tensormesh text-completion-codestral text-completion-inception
text-completion-openai together_ai topaz transcribe triton typesafe v0 valkey vercel_ai_gateway vertex_ai
vertex_ai_beta vllm volcengine voyage wandb watsonx watsonx_text xai xiaomi_mimo xinference zai
""".split()
)
MODELS = frozenset(
    """
ai21.j2-mid-v1 ai21.j2-ultra-v1 ai21.jamba-1-5-large-v1:0 ai21.jamba-1-5-mini-v1:0
ai21.jamba-instruct-v1:0 amazon.nova-2-5-sonic amazon.nova-2-lite-v1:0
amazon.nova-2-multimodal-embeddings-v1:0 amazon.nova-2-pro-preview-20251202-v1:0 amazon.nova-2-sonic-v1:0
amazon.nova-canvas-v1:0 amazon.nova-lite-v1:0 amazon.nova-micro-v1:0 amazon.nova-premier-v1:0
amazon.nova-pro-v1:0 amazon.rerank-v1:0 amazon.titan-embed-g1-text-02 amazon.titan-embed-image-v1
amazon.titan-embed-text-v1 amazon.titan-embed-text-v2:0 amazon.titan-image-generator-v1
amazon.titan-image-generator-v2 amazon.titan-image-generator-v2:0 amazon.titan-text-express-v1
amazon.titan-text-lite-v1 amazon.titan-text-premier-v1:0 anthropic.claude-3-5-haiku-20241022-v1:0
anthropic.claude-3-5-sonnet-20240620-v1:0 anthropic.claude-3-5-sonnet-20241022-v2:0
anthropic.claude-3-7-sonnet-20240620-v1:0 anthropic.claude-3-7-sonnet-20250219-v1:0
anthropic.claude-3-opus-20240229-v1:0 anthropic.claude-fable-5 anthropic.claude-fable-5-1
anthropic.claude-haiku-4-5-20251001-v1:0 anthropic.claude-haiku-4-5@20251001 anthropic.claude-haiku-5-5
anthropic.claude-instant-v1 anthropic.claude-mythos-5-1 anthropic.claude-mythos-preview
anthropic.claude-opus-4-1-20250805-v1:0 anthropic.claude-opus-4-20250514-v1:0
anthropic.claude-opus-4-5-20251101-v1:0 anthropic.claude-opus-4-6-v1 anthropic.claude-opus-4-7
anthropic.claude-opus-4-8 anthropic.claude-opus-5 anthropic.claude-opus-5-5
anthropic.claude-sonnet-4-20250514-v1:0 anthropic.claude-sonnet-4-5-20250929-v1:0
anthropic.claude-sonnet-4-6 anthropic.claude-sonnet-5 anthropic.claude-sonnet-5-5 anthropic.claude-v1
anthropic.claude-v2:1 apac.amazon.nova-2-lite-v1:0 apac.amazon.nova-2-pro-preview-20251202-v1:0
apac.amazon.nova-lite-v1:0 apac.amazon.nova-micro-v1:0 apac.amazon.nova-pro-v1:0
apac.anthropic.claude-fable-5 apac.anthropic.claude-haiku-4-5-20251001-v1:0
apac.anthropic.claude-haiku-5-5 apac.anthropic.claude-mythos-preview apac.anthropic.claude-opus-4-7
apac.anthropic.claude-opus-4-8 apac.anthropic.claude-opus-5 apac.anthropic.claude-opus-5-5
apac.anthropic.claude-sonnet-4-20250514-v1:0 apac.anthropic.claude-sonnet-4-6
apac.anthropic.claude-sonnet-5 apac.anthropic.claude-sonnet-5-5 au.anthropic.claude-fable-5
au.anthropic.claude-haiku-4-5-20251001-v1:0 au.anthropic.claude-haiku-5-5
au.anthropic.claude-mythos-preview au.anthropic.claude-opus-4-6-v1 au.anthropic.claude-opus-4-7
au.anthropic.claude-opus-4-8 au.anthropic.claude-opus-5 au.anthropic.claude-opus-5-5
au.anthropic.claude-sonnet-4-5-20250929-v1:0 au.anthropic.claude-sonnet-4-6 au.anthropic.claude-sonnet-5
au.anthropic.claude-sonnet-5-5 babbage-002 c4ai-aya-expanse-32b chat-latest chatdolphin
chatgpt-image-latest claude-fable-5 claude-fable-5-1 claude-haiku-4-5 claude-haiku-4-5-20251001
claude-haiku-5-5 claude-mythos-5 claude-mythos-5-1 claude-mythos-preview claude-opus-4-5
claude-opus-4-5-20251101 claude-opus-4-6 claude-opus-4-6-20260205 claude-opus-4-7
claude-opus-4-7-20260416 claude-opus-4-8 claude-opus-5 claude-opus-5-5 claude-sonnet-4-5
claude-sonnet-4-5-20250929 claude-sonnet-4-5-20250929-v1:0 claude-sonnet-4-6 claude-sonnet-5
claude-sonnet-5-5 cohere.command-light-text-v14 cohere.command-text-v14 cohere.embed-english-v3
cohere.embed-multilingual-v3 cohere.embed-v4:0 cohere.rerank-v3-5:0 command-a-03-2025
command-a-plus-05-2026 command-nightly command-r-08-2024 command-r-plus-08-2024 command-r7b-12-2024
computer-use-preview computer-use-preview-2025-03-11 davinci-002 daybreak-blue-latest daybreak-red-latest
deep-research-pro-preview-12-2025 deepseek-chat deepseek-flash deepseek-reasoner deepseek-v3-2-251201
deepseek-v4-flash deepseek-v4-flash-vision-exp deepseek-v4-pro deepseek.r1-v1:0 deepseek.v3-v1:0
deepseek.v3.2 dolphin doubao-embedding doubao-embedding-large doubao-embedding-large-text-240915
doubao-embedding-large-text-250515 doubao-embedding-text-240715 embed-english-light-v3.0
embed-english-v3.0 embed-multilingual-light-v3.0 embed-multilingual-v3.0 eu.amazon.nova-2-lite-v1:0
eu.amazon.nova-2-pro-preview-20251202-v1:0 eu.amazon.nova-lite-v1:0 eu.amazon.nova-micro-v1:0
eu.amazon.nova-pro-v1:0 eu.anthropic.claude-3-5-haiku-20241022-v1:0
eu.anthropic.claude-3-5-sonnet-20240620-v1:0 eu.anthropic.claude-3-5-sonnet-20241022-v2:0
eu.anthropic.claude-3-7-sonnet-20250219-v1:0 eu.anthropic.claude-3-opus-20240229-v1:0
eu.anthropic.claude-fable-5 eu.anthropic.claude-fable-5-1 eu.anthropic.claude-haiku-4-5-20251001-v1:0
eu.anthropic.claude-haiku-5-5 eu.anthropic.claude-opus-4-1-20250805-v1:0
eu.anthropic.claude-opus-4-20250514-v1:0 eu.anthropic.claude-opus-4-5-20251101-v1:0
eu.anthropic.claude-opus-4-6-v1 eu.anthropic.claude-opus-4-7 eu.anthropic.claude-opus-4-8
eu.anthropic.claude-opus-5 eu.anthropic.claude-opus-5-5 eu.anthropic.claude-sonnet-4-20250514-v1:0
eu.anthropic.claude-sonnet-4-5-20250929-v1:0 eu.anthropic.claude-sonnet-4-6 eu.anthropic.claude-sonnet-5
eu.anthropic.claude-sonnet-5-5 eu.deepseek.v3.2 eu.meta.llama3-2-1b-instruct-v1:0
eu.meta.llama3-2-3b-instruct-v1:0 eu.mistral.pixtral-large-2502-v1:0 eu.twelvelabs.marengo-embed-2-7-v1:0
eu.twelvelabs.marengo-embed-3-0-v1:0 eu.twelvelabs.pegasus-1-2-v1:0 fireworks-ai-4.1b-to-16b
fireworks-ai-56b-to-176b fireworks-ai-above-16b fireworks-ai-default fireworks-ai-embedding-150m-to-350m
fireworks-ai-embedding-up-to-150m fireworks-ai-moe-up-to-56b fireworks-ai-up-to-4b ft:babbage-002
ft:davinci-002 ft:gpt-3.5-turbo ft:gpt-3.5-turbo-0125 ft:gpt-3.5-turbo-0613 ft:gpt-3.5-turbo-1106
ft:gpt-4-0613 ft:gpt-4.1-2025-04-14 ft:gpt-4.1-mini-2025-04-14 ft:gpt-4.1-nano-2025-04-14
ft:gpt-4o-2024-08-06 ft:gpt-4o-2024-11-20 ft:gpt-4o-mini-2024-07-18 ft:o4-mini-2025-04-16
gemini-2.0-flash-exp-image-generation gemini-2.5-computer-use-preview-10-2025 gemini-2.5-flash
gemini-2.5-flash-image gemini-2.5-flash-lite gemini-2.5-flash-lite-preview-09-2025
gemini-2.5-flash-native-audio-latest gemini-2.5-flash-native-audio-preview-09-2025
gemini-2.5-flash-native-audio-preview-12-2025 gemini-2.5-flash-preview-09-2025
gemini-2.5-flash-preview-tts gemini-2.5-pro gemini-2.5-pro-preview-tts gemini-3-flash-preview
gemini-3-pro-image gemini-3-pro-image-preview gemini-3.1-flash-image gemini-3.1-flash-image-preview
gemini-3.1-flash-lite gemini-3.1-flash-lite-image gemini-3.1-flash-lite-preview
gemini-3.1-flash-live-preview gemini-3.1-pro-preview gemini-3.1-pro-preview-customtools gemini-3.5-flash
gemini-3.5-flash-lite gemini-3.6-flash gemini-3.7-flash gemini-3.8-flash gemini-3.8-flash-cyber
gemini-3.8-live gemini-3.8-live-extended-thinking gemini-embedding-001 gemini-embedding-2
gemini-embedding-2-preview gemini-exp-1206 gemini-flash-experimental gemini-flash-latest
gemini-flash-lite-latest gemini-live-2.5-flash-native-audio
gemini-live-2.5-flash-preview-native-audio-09-2025 gemini-nano-banana-2.1 gemini-omni-flash-preview
gemini-pro-latest gemini-robotics-er-1.5-preview gemini-robotics-er-2-preview glm-4-7-251222
global.amazon.nova-2-lite-v1:0 global.anthropic.claude-fable-5 global.anthropic.claude-fable-5-1
global.anthropic.claude-haiku-4-5-20251001-v1:0 global.anthropic.claude-haiku-5-5
global.anthropic.claude-mythos-5-1 global.anthropic.claude-opus-4-5-20251101-v1:0
global.anthropic.claude-opus-4-6-v1 global.anthropic.claude-opus-4-7 global.anthropic.claude-opus-4-8
global.anthropic.claude-opus-5 global.anthropic.claude-opus-5-5
global.anthropic.claude-sonnet-4-20250514-v1:0 global.anthropic.claude-sonnet-4-5-20250929-v1:0
global.anthropic.claude-sonnet-4-6 global.anthropic.claude-sonnet-5 global.anthropic.claude-sonnet-5-5
global.cohere.embed-v4:0 global.moonshotai.kimi-k3 global.openai.gpt-5.4 global.openai.gpt-5.5
global.openai.gpt-5.6-luna global.openai.gpt-5.6-sol global.openai.gpt-5.6-terra
global.openai.gpt-6-astra global.openai.gpt-6-luna global.openai.gpt-6-sol global.openai.gpt-6.1-sol
global.twelvelabs.pegasus-1-2-v1:0 global.twelvelabs.pegasus-1-5-v1:0 global.xai.grok-4.6
global.xai.grok-4.7 global.zai.glm-5.3 google.gemma-3-12b-it google.gemma-3-27b-it google.gemma-3-4b-it
gpt-3.5-turbo gpt-3.5-turbo-0125 gpt-3.5-turbo-1106 gpt-3.5-turbo-16k gpt-3.5-turbo-instruct
gpt-3.5-turbo-instruct-0914 gpt-4 gpt-4-0613 gpt-4-1106-preview gpt-4-turbo gpt-4-turbo-2024-04-09
gpt-4.1 gpt-4.1-2025-04-14 gpt-4.1-mini gpt-4.1-mini-2025-04-14 gpt-4.1-nano gpt-4.1-nano-2025-04-14
gpt-4o gpt-4o-2024-05-13 gpt-4o-2024-08-06 gpt-4o-2024-11-20 gpt-4o-audio-preview-2024-12-17
gpt-4o-audio-preview-2025-06-03 gpt-4o-mini gpt-4o-mini-2024-07-18 gpt-4o-mini-audio-preview-2024-12-17
gpt-4o-mini-realtime-preview-2024-12-17 gpt-4o-mini-search-preview gpt-4o-mini-search-preview-2025-03-11
gpt-4o-mini-transcribe gpt-4o-mini-transcribe-2025-03-20 gpt-4o-mini-transcribe-2025-12-15
gpt-4o-mini-tts gpt-4o-mini-tts-2025-03-20 gpt-4o-mini-tts-2025-12-15 gpt-4o-search-preview
gpt-4o-search-preview-2025-03-11 gpt-4o-transcribe gpt-4o-transcribe-diarize gpt-5 gpt-5-2025-08-07
gpt-5-chat gpt-5-chat-latest gpt-5-codex gpt-5-mini gpt-5-mini-2025-08-07 gpt-5-nano
gpt-5-nano-2025-08-07 gpt-5-pro gpt-5-pro-2025-10-06 gpt-5-search-api gpt-5-search-api-2025-10-14 gpt-5.1
gpt-5.1-2025-11-13 gpt-5.1-chat-latest gpt-5.1-codex gpt-5.1-codex-max gpt-5.1-codex-mini gpt-5.2
gpt-5.2-2025-12-11 gpt-5.2-chat-latest gpt-5.2-codex gpt-5.2-pro gpt-5.2-pro-2025-12-11
gpt-5.3-chat-latest gpt-5.3-codex gpt-5.4 gpt-5.4-2026-03-05 gpt-5.4-mini gpt-5.4-mini-2026-03-17
gpt-5.4-nano gpt-5.4-nano-2026-03-17 gpt-5.4-pro gpt-5.4-pro-2026-03-05 gpt-5.5 gpt-5.5-2026-04-23
gpt-5.5-cyber gpt-5.5-cyber-preview gpt-5.5-pro gpt-5.5-pro-2026-04-23 gpt-5.6 gpt-5.6-cyber gpt-5.6-luna
gpt-5.6-sol gpt-5.6-terra gpt-6-astra gpt-6-luna gpt-6-sol gpt-6.1-sol gpt-audio gpt-audio-1.5
gpt-audio-2025-08-28 gpt-audio-mini gpt-audio-mini-2025-10-06 gpt-audio-mini-2025-12-15
gpt-daybreak-blue-latest gpt-daybreak-red-latest gpt-image-1 gpt-image-1-mini gpt-image-1.5
gpt-image-1.5-2025-12-16 gpt-image-2 gpt-image-2-2026-04-21 gpt-image-2.5-flare
gpt-image-2.5-flare-2026-09-08 gpt-image-2.5-sunburst gpt-image-2.5-sunburst-2026-09-08 gpt-live-1
gpt-live-transcribe gpt-realtime gpt-realtime-1.5 gpt-realtime-2 gpt-realtime-2.1 gpt-realtime-2.1-mini
gpt-realtime-2025-08-28 gpt-realtime-mini gpt-realtime-mini-2025-12-15 gpt-realtime-translate
gpt-realtime-whisper gpt-rosalind-discovery gpt-rosalind-research gpt-transcribe in.moonshotai.kimi-k3
j2-light j2-mid j2-ultra jamba-1.5 jamba-1.5-large jamba-1.5-large@001 jamba-1.5-mini jamba-1.5-mini@001
jamba-large-1.6 jamba-large-1.7 jamba-mini-1.6 jamba-mini-1.7 jina-reranker-v2-base-multilingual
jp.amazon.nova-2-lite-v1:0 jp.anthropic.claude-haiku-4-5-20251001-v1:0 jp.anthropic.claude-haiku-5-5
jp.anthropic.claude-opus-4-7 jp.anthropic.claude-opus-4-8 jp.anthropic.claude-opus-5
jp.anthropic.claude-opus-5-5 jp.anthropic.claude-sonnet-4-5-20250929-v1:0 jp.anthropic.claude-sonnet-4-6
jp.anthropic.claude-sonnet-5 jp.anthropic.claude-sonnet-5-5 kimi-k2-thinking-251104 medlm-large
medlm-medium meta.llama2-13b-chat-v1 meta.llama2-70b-chat-v1 meta.llama3-1-405b-instruct-v1:0
meta.llama3-1-70b-instruct-v1:0 meta.llama3-1-8b-instruct-v1:0 meta.llama3-2-11b-instruct-v1:0
meta.llama3-2-1b-instruct-v1:0 meta.llama3-2-3b-instruct-v1:0 meta.llama3-2-90b-instruct-v1:0
meta.llama3-3-70b-instruct-v1:0 meta.llama3-70b-instruct-v1:0 meta.llama3-8b-instruct-v1:0
meta.llama4-maverick-17b-instruct-v1:0 meta.llama4-scout-17b-instruct-v1:0 minimax.minimax-m2
minimax.minimax-m2.1 minimax.minimax-m2.5 mistral.devstral-2-123b mistral.magistral-small-2509
mistral.ministral-3-14b-instruct mistral.ministral-3-3b-instruct mistral.ministral-3-8b-instruct
mistral.mistral-7b-instruct-v0:2 mistral.mistral-large-2402-v1:0 mistral.mistral-large-2407-v1:0
mistral.mistral-large-3-675b-instruct mistral.mistral-small-2402-v1:0 mistral.mixtral-8x7b-instruct-v0:1
mistral.pixtral-large-2502-v1:0 mistral.voxtral-mini-3b-2507 mistral.voxtral-small-24b-2507
moonshot.kimi-k2-thinking moonshotai.kimi-k2.5 moonshotai.kimi-k3 multimodalembedding
multimodalembedding@001 nvidia.nemotron-nano-12b-v2 nvidia.nemotron-nano-3-30b nvidia.nemotron-nano-9b-v2
nvidia.nemotron-super-3-120b o1 o1-2024-12-17 o1-pro o1-pro-2025-03-19 o3 o3-2025-04-16 o3-deep-research
o3-deep-research-2025-06-26 o3-mini o3-mini-2025-01-31 o3-pro o3-pro-2025-06-10 o4-mini
o4-mini-2025-04-16 o4-mini-deep-research o4-mini-deep-research-2025-06-26 omni-moderation-2024-09-26
omni-moderation-latest openai.gpt-6-luna openai.gpt-6-sol openai.gpt-oss-120b-1:0 openai.gpt-oss-20b-1:0
openai.gpt-oss-safeguard-120b openai.gpt-oss-safeguard-20b qwen.qwen3-235b-a22b-2507-v1:0
qwen.qwen3-32b-v1:0 qwen.qwen3-coder-30b-a3b-v1:0 qwen.qwen3-coder-480b-a35b-v1:0 qwen.qwen3-coder-next
qwen.qwen3-next-80b-a3b qwen.qwen3-vl-235b-a22b rerank-english-v3.0 rerank-multilingual-v3.0 rerank-v3.5
rerank-v4.0-fast rerank-v4.0-pro sample_spec sora-2 sora-2-pro sora-2-pro-high-res
stability.sd3-5-large-v1:0 stability.sd3-large-v1:0 stability.stable-conservative-upscale-v1:0
stability.stable-creative-upscale-v1:0 stability.stable-fast-upscale-v1:0
stability.stable-image-control-sketch-v1:0 stability.stable-image-control-structure-v1:0
stability.stable-image-core-v1:0 stability.stable-image-core-v1:1
stability.stable-image-erase-object-v1:0 stability.stable-image-inpaint-v1:0
stability.stable-image-remove-background-v1:0 stability.stable-image-search-recolor-v1:0
stability.stable-image-search-replace-v1:0 stability.stable-image-style-guide-v1:0
stability.stable-image-ultra-v1:0 stability.stable-image-ultra-v1:1 stability.stable-outpaint-v1:0
stability.stable-style-transfer-v1:0 text-embedding-004 text-embedding-005 text-embedding-3-large
text-embedding-3-small text-embedding-ada-002 text-embedding-ada-002-v2 text-embedding-large-exp-03-07
text-embedding-preview-0409 text-multilingual-embedding-002 text-unicorn text-unicorn@001
together-ai-21.1b-41b together-ai-4.1b-8b together-ai-41.1b-80b together-ai-8.1b-21b
together-ai-81.1b-110b together-ai-embedding-151m-to-350m together-ai-embedding-up-to-150m
together-ai-up-to-4b tts-1 tts-1-1106 tts-1-hd tts-1-hd-1106 twelvelabs.marengo-embed-2-7-v1:0
twelvelabs.marengo-embed-3-0-v1:0 twelvelabs.pegasus-1-2-v1:0 twelvelabs.pegasus-1-5-v1:0
us-gov.anthropic.claude-fable-5-1 us-gov.anthropic.claude-haiku-5-5 us-gov.anthropic.claude-opus-4-8
us-gov.anthropic.claude-opus-5 us-gov.anthropic.claude-opus-5-5
us-gov.anthropic.claude-sonnet-4-5-20250929-v1:0 us-gov.anthropic.claude-sonnet-5
us-gov.anthropic.claude-sonnet-5-5 us-gov.nvidia.nemotron-nano-12b-v2 us-gov.nvidia.nemotron-nano-3-30b
us-gov.nvidia.nemotron-nano-9b-v2 us-gov.nvidia.nemotron-super-3-120b us-gov.openai.gpt-oss-120b-1:0
us-gov.openai.gpt-oss-20b-1:0 us-gov.xai.grok-4.6 us.amazon.nova-2-lite-v1:0
us.amazon.nova-2-pro-preview-20251202-v1:0 us.amazon.nova-canvas-v1:0 us.amazon.nova-lite-v1:0
us.amazon.nova-micro-v1:0 us.amazon.nova-pro-v1:0 us.anthropic.claude-3-5-haiku-20241022-v1:0
us.anthropic.claude-3-5-sonnet-20240620-v1:0 us.anthropic.claude-3-5-sonnet-20241022-v2:0
us.anthropic.claude-3-7-sonnet-20250219-v1:0 us.anthropic.claude-3-opus-20240229-v1:0
us.anthropic.claude-fable-5 us.anthropic.claude-fable-5-1 us.anthropic.claude-haiku-4-5-20251001-v1:0
us.anthropic.claude-haiku-5-5 us.anthropic.claude-mythos-5 us.anthropic.claude-mythos-5-1
us.anthropic.claude-mythos-preview us.anthropic.claude-opus-4-1-20250805-v1:0
us.anthropic.claude-opus-4-20250514-v1:0 us.anthropic.claude-opus-4-5-20251101-v1:0
us.anthropic.claude-opus-4-6-v1 us.anthropic.claude-opus-4-7 us.anthropic.claude-opus-4-8
us.anthropic.claude-opus-5 us.anthropic.claude-opus-5-5 us.anthropic.claude-sonnet-4-20250514-v1:0
us.anthropic.claude-sonnet-4-5-20250929-v1:0 us.anthropic.claude-sonnet-4-6 us.anthropic.claude-sonnet-5
us.anthropic.claude-sonnet-5-5 us.cohere.embed-v4:0 us.deepseek.r1-v1:0 us.deepseek.v3.2
us.meta.llama3-1-405b-instruct-v1:0 us.meta.llama3-1-70b-instruct-v1:0 us.meta.llama3-1-8b-instruct-v1:0
us.meta.llama3-2-11b-instruct-v1:0 us.meta.llama3-2-1b-instruct-v1:0 us.meta.llama3-2-3b-instruct-v1:0
us.meta.llama3-2-90b-instruct-v1:0 us.meta.llama3-3-70b-instruct-v1:0
us.meta.llama4-maverick-17b-instruct-v1:0 us.meta.llama4-scout-17b-instruct-v1:0
us.mistral.pixtral-large-2502-v1:0 us.moonshotai.kimi-k3 us.openai.gpt-5.4 us.openai.gpt-5.5
us.openai.gpt-5.6-luna us.openai.gpt-5.6-sol us.openai.gpt-5.6-terra us.openai.gpt-6-astra
us.openai.gpt-6-luna us.openai.gpt-6-sol us.openai.gpt-6.1-sol
us.stability.stable-conservative-upscale-v1:0 us.stability.stable-creative-upscale-v1:0
us.stability.stable-fast-upscale-v1:0 us.stability.stable-image-control-sketch-v1:0
us.stability.stable-image-control-structure-v1:0 us.stability.stable-image-erase-object-v1:0
us.stability.stable-image-inpaint-v1:0 us.stability.stable-image-remove-background-v1:0
us.stability.stable-image-search-recolor-v1:0 us.stability.stable-image-search-replace-v1:0
us.stability.stable-image-style-guide-v1:0 us.stability.stable-outpaint-v1:0
us.stability.stable-style-transfer-v1:0 us.twelvelabs.marengo-embed-2-7-v1:0
us.twelvelabs.marengo-embed-3-0-v1:0 us.twelvelabs.pegasus-1-2-v1:0 us.twelvelabs.pegasus-1-5-v1:0
us.writer.palmyra-x4-v1:0 us.writer.palmyra-x5-v1:0 us.xai.grok-4.6 us.xai.grok-4.7 us.zai.glm-5.3
whisper-1 writer.palmyra-vision-7b writer.palmyra-x4-v1:0 writer.palmyra-x5-v1:0 zai.glm-4.7
zai.glm-4.7-flash zai.glm-5
""".split()
)
