# %% [markdown]
# # 03. DDIM: 결정론적인 길, 그리고 되돌아가기
#
# **무엇을 재는가.** 모든 eta에 대해 DDIM의 한 단계가 하는 일, 잡음 없는 20단계가 분포에서 지키는 것과 잡음 있는
# 20단계가 잃는 것, img2img가 시작하는 지점에 그림이 얼마나 남아 있는가, 그림에서 그 잡음으로 가는 길을 얼마나 정확하게
# 되짚을 수 있는가.
#
# **한 문장으로 된 주장.** 단위 분산의 데이터에서 20단계의 DDPM은 DDIM이 잃는 분산의 1.7배를 잃는다(DDIM, Song et al.
# 2021, arXiv:2010.02502, 표 1: CIFAR-10, 20단계에서 FID 18.36 대 6.84). 그리고 그림은 자기 잡음으로부터 되돌아오며, 그
# 오차는 단계 수에 반비례한다(5.4절).
#
# **시간.** CPU 코어 2개에서 2분(프로세서 시간 50초), GPU에서는 재지 않았다. 배우는 데는 60~90분. 학습도 내려받기도
# 없다. 최선의 잡음 제거기(denoiser)가 공식으로 주어지는 가우시안 혼합과, 패키지에 들어 있는 toybox 모델을 쓴다.
#
# **먼저 볼 것.** 01강(잡음 수준, `x = x0 + sigma * noise`, 최선의 잡음 제거기)과 02강(DDPM).

# %% [markdown]
# ## 1. 한 단계
#
# | 기호 | 라이브러리에서 | 뜻 |
# |---|---|---|
# | $\sigma$, $\sigma'$ | `sigma`, `sigma_next` | 단계 전과 후의 잡음 수준(noise level), $\sigma' < \sigma$ |
# | $x$ | `x` | 잡음이 섞인 점, $x = x_0 + \sigma\,\epsilon$ |
# | $\hat x_0$ | `x0` | 잡음 제거기가 예측한 것: $E[x_0 \mid x]$ |
# | $\hat\epsilon$ | `eps_from_x0` | 그에 따르는 잡음, $(x - \hat x_0)/\sigma$ |
# | $z$ | `noise` | 새로 뽑은 단위 잡음 |
# | $\eta$ | `eta` | 새 잡음의 양, 0에서 1까지 |
# | $\bar\alpha$ | `alpha_bar` | 논문의 형태에서 신호가 차지하는 분산의 몫, $1/(1+\sigma^2)$ |
#
# 논문은 이 단계를 분산 보존(variance-preserving) 형태
# $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon$로 적는다(식 12). 새 잡음의 표준편차 $s$는 고를 수
# 있다.
# $$ x_{t-1} = \underbrace{\sqrt{\bar\alpha_{t-1}}\;\hat x_0}_{\text{predicted } x_0} +
# \underbrace{\sqrt{1 - \bar\alpha_{t-1} - s^2}\;\hat\epsilon}_{\text{direction pointing to } x_t} +
# \underbrace{s\,z}_{\text{random noise}} \tag{03.1} $$
# $\sqrt{\bar\alpha_{t-1}}$로 나눈다. $(1-\bar\alpha)/\bar\alpha = \sigma^2$이므로 $\bar\alpha$의 제곱근이 모두
# 사라진다.
# $$ x' = \hat x_0 + \sigma_\downarrow\,\hat\epsilon + \sigma_\uparrow\,z, \qquad
# \sigma_\downarrow^2 + \sigma_\uparrow^2 = \sigma'^2 \tag{03.2} $$
# 묵은 잡음과 새 잡음은 제곱하여 더하면 단계가 가는 수준이 된다. 논문의 선택(식 16)은 다음과 같다.
# $$ \sigma_\uparrow = \eta\,\sigma'\sqrt{1 - r^2}, \qquad r = \sigma'/\sigma \tag{03.3} $$

# %% [markdown]
# ### 연습 03.1: `ddim_step`
#
# 식 (03.2)와 (03.3)을 `lessons/exercises/e03_ddim.py`에 쓰고 `pytest tests/test_03_ddim.py`를 실행한다. 틀리기 쉬운
# 곳은 둘이다. 마지막 단계에서는 $\sigma' = 0$이고, $\eta$는 추적 중인(traced) 값일 수 있다. 검사가 실패하면, 당신의
# 단계를 20번 거친 점 400개의 그림이 목표와 나란히 `lessons/exercises/seen/03.1.png`에 저장된다.
#
# 다음 셀은 라이브러리 자신의 함수에 대해 검사가 하는 말을 보여 준다. 당신의 노트북에서는 `check("03.1", my_function)`이
# 당신의 함수에 대해 말해 준다.

# %% [markdown]
# ## 2. eta가 하는 일
#
# **eta = 0.** 새 잡음이 없다: $x' = \hat x_0 + \sigma'\hat\epsilon$. $\hat\epsilon = (x-\hat x_0)/\sigma$를 넣고
# 정리하면
# $$ x' = x + (\sigma' - \sigma)\,\frac{x - \hat x_0}{\sigma} \tag{03.4} $$
# 이것은 미분방정식 $dx/d\sigma = (x - \hat x_0)/\sigma$를 따라가는 오일러(Euler) 단계이다. 잡음 없는 DDIM은 변수
# $\sigma$에 대한 오일러 방법 *그 자체*이다. 같은 방정식에 대한 더 나은 방법은 04강에 있다.
#
# **eta = 1.** 이때 $\sigma_\downarrow = \sigma'^2/\sigma = r\sigma'$이고 (03.2)는 다음이 된다.
# $$ x' = (1 - r^2)\,\hat x_0 + r^2 x + \sigma'\sqrt{1-r^2}\,z \tag{03.5} $$
# 이것은 02강에 나온 DDPM의 사후 분포(posterior) $q(x' \mid x, \hat x_0)$에서 뽑은 것이다.
#
# 어느 점에서나 둘은 float32의 반올림 범위에서 같다.

# %% [markdown]
# 이제 정확한 잡음 제거기가 있는 고리(ring) 위에서 처음부터 끝까지 표집한다. 우연이 들어오는 곳은 둘이다. 출발하는
# 잡음과, 새 잡음의 키(key)이다. $\eta = 0$이면 앞의 것만 남는다. 아래에서는 같은 출발점들을 세 번 끌고 내려온다.
# 출발점이 그림 안에 들어오도록 평면은 분산 보존 형태 $x/\sqrt{1+\sigma^2}$로 그렸다.
#
# 잡음이 없으면 길은 매끄럽고, 같은 수준에서 서로 만나지 않는다. $\eta = 1$이면 점은 어디서 출발했는지 잊는다.

# %% [markdown]
# 위의 왼쪽 그림에서 파란 길은 주황 길 아래에 놓여 있다. 차이는 전혀 없고, 반올림만큼의 차이조차 없다.
#
# **글들이 느슨한 곳.** 이 프로젝트의 바탕이 된 글 하나는 $\sigma_t = 0$이면 *순방향*(forward) 과정이 결정론적이 된다고
# 말한다. 논문도 그렇게 말하지만 조건이 붙는다. *$x_0$와 바로 앞의 점이 주어졌을 때* 결정론적이다(4.1절). 잡음을 미리
# 알지 못한 채 그림에 잡음을 입히는 일은 여전히 무작위이다. $\eta = 0$이 결정론적으로 만드는 것은 내려오는 길이다.
# 그리고 결정론적이라는 말은 그림이 하나뿐이라는 뜻이 아니다. 출발점은 여전히 우연히 뽑힌다.

# %% [markdown]
# ## 3. 단계들은 어떻게 보이는가
#
# toybox 자신의 모델, $\eta = 0$에서 20단계이다. `ldm.generate`의 `wrap`은 잡음 제거기를 받아 잡음 제거기를 내는 함수를
# 받는다. 여기서는 지나가는 것을 적어 두는 함수이다. 위는 분산 보존 형태의 $x$, 아래는 예측된 $\hat x_0$이고, 둘 다
# 그림으로 복호화(decode)했다.
#
# 예측은 그 잡음 아래 있을 수 있는 모든 그림의 평균이므로 흐릿하게 시작한다. 큰 것이 먼저 정해진다.

# %% [markdown]
# ## 4. 어느 시간 단계인가: leading과 trailing
#
# 신경망은 $T = 1000$개의 잡음 수준에서 학습되었다. $n$단계의 표집은 그 가운데 $n$개에서만 신경망에 묻고 나머지는
# 건너뛴다. 건너뛴 곳에서는 아무것도 계산하지 않는다. 어느 $n$개인가? 흔한 관례가 둘 있고, 둘은 양쪽 끝에서 다르다.
#
# **Leading**(DDIM 논문의 방식이자 Stable Diffusion의 설정 파일이 말하는 방식), 오프셋은 1이다.
# $$ t_k = k \lfloor T/n \rfloor + 1, \qquad k = n-1, \dots, 0 \tag{03.6} $$
# **Trailing**(Lin et al. 2023, arXiv:2305.08891, 표 2):
# $$ t_k = \mathrm{round}(T - k\,T/n) - 1, \qquad k = 0, \dots, n-1 \tag{03.7} $$
# Leading은 $t = 1$, 곧 가장 낮은 수준의 바로 위에서 끝난다. 그러나 $t = 999$에서는 결코 시작하지 않는다($n = T$일 때는
# 예외). 20단계라면 951에서 시작한다. 그런데도 출발점은 마치 거기에 그림이 조금도 남아 있지 않은 것처럼 온전한 잡음이다.

# %% [markdown]
# ### 연습 03.2와 03.3: `ddim_timesteps`, `trailing_timesteps`
#
# (03.6)과 (03.7)을 `lessons/exercises/e03_ddim.py`에 쓴다. `pytest tests/test_03_ddim.py`가 채점한다. 오프셋이 들어갈
# 자리가 없는 경우와, 간격이 정수가 아닌 경우를 조심한다. 당신의 함수가 내는 10단계의 시간 단계는 아래 그림의 점들과
# 같아야 한다.
#
# 오른쪽 그림은 정수 간격이 하는 일이다. $n$이 501에서 999 사이이면 간격은 1이고, *leading*은 가장 낮은 $n$개의 시간
# 단계를 가져간다. **흔히들 단계가 많아서 나빠질 일은 없다고 믿는다.** Leading에서 501단계는 500단계보다 훨씬 나쁘다.

# %% [markdown]
# ## 5. 끝에서 신호가 0인 스케줄(zero terminal signal)
#
# $t = 999$에서도 Stable Diffusion의 스케줄은 그림의 $\sqrt{\bar\alpha} = 0.068$을 남긴다. 학습할 때 신경망은 거기서
# 그림이 밝은지를 읽어 낼 수 있다. 표집할 때는 순수한 잡음을 받고, 거기서 "중간"을 읽는다. Lin et al.은 아무것도 남지
# 않도록 스케줄을 바꾼다.
# $$ \sqrt{\bar\alpha_t}\;\leftarrow\;\bigl(\sqrt{\bar\alpha_t} - \sqrt{\bar\alpha_{T-1}}\bigr)\,
# \frac{\sqrt{\bar\alpha_0}}{\sqrt{\bar\alpha_0} - \sqrt{\bar\alpha_{T-1}}} \tag{03.8} $$
# 끝은 0이고, 그곳의 $\sigma$는 무한대가 된다. 라이브러리는 그 자리에 `TERMINAL_ALPHA_BAR` $= 2^{-24}$를
# 둔다($\sigma = 4096$).
#
# 1차원에서 본 효과. 잠재 표현(latent)의 밝기를 숫자 1024개가 공통으로 가진 것, 각각의 표준편차는 0.5라고 하자. 그
# 방향으로 데이터의 표준편차는 $s = 0.5\sqrt{1024} = 16$으로, 잡음 전체보다도 넓다. 단계의 오차가 없다면
# $\sigma_{\max}$에서 0까지의 길은 그 방향을 $s/\sqrt{s^2+\sigma_{\max}^2}$배로 줄인다(04강). 표준편차
# $\sqrt{1+\sigma_{\max}^2}$에서 출발하면 다음을 얻는다.
# $$ \frac{\text{spread of brightness drawn}}{\text{true spread}} =
# \sqrt{\frac{1+\sigma_{\max}^2}{s^2+\sigma_{\max}^2}} \tag{03.9} $$

# %% [markdown]
# 잰 값은 20단계의 오차만큼 더 작다. 그러나 표준편차의 3분의 1(trailing), 또는 그 이상(leading)은 오로지 어디서
# 시작하는가 때문에 잃는다. 검은 그림을 좀처럼 그리지 못하는 Stable Diffusion의 알려진 결함이다.
#
# ### 연습 03.4: `rescale_to_zero_terminal_snr`
#
# 끝에 대신하는 값을 둔 (03.8)을 `lessons/exercises/e03_ddim.py`에 쓴다. `pytest tests/test_03_ddim.py`. 옮기고 늘리는
# 것은 *제곱근*임에 주의한다. Stable Diffusion의 스케줄에 대해 기대하는 값은 아래와 같다.

# %% [markdown]
# ## 6. 20단계가 지키는 것
#
# 한 단계는 얼마나 잃는가? $x = x_0 + \sigma\epsilon$이 정확히 맞고 $\hat x_0 = E[x_0 \mid x]$도 정확하다고 하자.
# $P = E\,\mathrm{Var}[x_0 \mid x]$는 최선의 잡음 제거기도 알 수 없는 것이다. 전체 분산의 법칙에 따라
# $\mathrm{Var}\,\hat x_0 = \mathrm{Var}\,x_0 - P$이고 $\mathrm{Cov}(x, \hat x_0) = \mathrm{Var}\,x_0$이다. 둘을
# (03.4)와 (03.5)에 넣고 참값 $\mathrm{Var}\,x_0 + \sigma'^2$과 견준다.
# $$ \text{DDIM}: \quad \mathrm{Var}\,x' = \mathrm{Var}\,x_0 + \sigma'^2 - (1-r)^2 P \tag{03.10} $$
# $$ \text{DDPM}: \quad \mathrm{Var}\,x' = \mathrm{Var}\,x_0 + \sigma'^2 - (1-r^2)^2 P \tag{03.11} $$
# 이것은 *모든* 분포에서 성립한다. DDPM의 한 단계는 DDIM의 한 단계가 잃는 분산의 $(1+r)^2$배를 잃는다. 단계가 작으면 네
# 배에 이른다. DDPM의 사후 분포는 $\hat x_0$을 참값으로 여기고, 그것이 평균일 뿐임을 잊는다. 그 뒤의 단계들에서 새
# 잡음이 그 일부를 메운다. 가우시안이고 비 $r$이 일정한 단계가 많을 때 끝에 남는 손실은 DDIM의 두 배이다. 표준편차 $s$인
# 데이터에서 1차 근사로 $s^2(1-r)$ 대 $s^2(1-r)/2$이다.

# %% [markdown]
# 이제 처음부터 끝까지. 표준편차 $s$인 가우시안은 이 단계들을 거쳐도 가우시안이므로, 곡선 하나가 모든 크기의 세부에서
# 무엇이 지켜지는지를 말해 준다. 작은 $s$는 고운 질감이고, $s = 1$은 잠재 표현을 맞추어 놓은 크기이다. 선은 정확한
# 값이고(각 단계는 분산에 어떤 수를 곱하고 다른 수를 더한다), 점은 뽑은 점들로 잰 값이다. 기준선은 1, 곧 잃은 것이
# 없음이다.

# %% [markdown]
# 좌표가 둘뿐인 고리에서는 참 분포까지의 거리가 말해 주는 것이 적다. 부분들 사이에 놓인 점들이 부분 안에서 잃은 것보다
# 크게 작용하고, 20단계에서 DDIM과 DDPM의 차이는 참 분포에서 두 번 뽑은 것들의 차이보다 작다. 그림에는 수천 개의 방향이
# 있고 대부분은 퍼진 정도가 작다. 거기서는 손실이 쌓인다. 논문의 표 1은 그림에 관한 것이다. 두 열을 바닥값(floor)과
# 나란히 적는다.

# %% [markdown]
# 잡음 없는 표집만이 지키는 것이 하나 더 있다. 출발점이 *어느* 그림의 것인가이다. 짧은 표집은 같은 출발점에서 간 긴
# 표집의 끝 가까이에서 끝난다. 그래서 10단계로 좋은 시드(seed)를 찾고 100단계로 그릴 수 있다. 새 잡음이 있으면 한
# 출발점에서 간 두 표집은 서로 아무 관계가 없다.

# %% [markdown]
# ## 7. 강도는 단계 수의 몫이다
#
# "img2img"는 그림에 잡음을 입히고 남은 길을 간다. 강도(`strength`)는 어디서부터인지를 말한다. $n$단계 가운데 마지막
# $\lfloor n \cdot \text{strength} \rfloor$단계를 밟는다.
#
# **글들이 틀린 곳.** "강도 0.8이면 영역의 80 %가 잡음으로 덮인다. 강도 1이면 순수한 잡음이다." 강도는 *단계 수*의
# 몫이다. 1000단계에서 강도 0.8은 $t = 799$에서 시작하고, 거기서 잡음은 분산의 $1-\bar\alpha = 96.3\,\%$이다. 강도 1은
# $t = 999$에서 시작하고, 그림 진폭의 6.8 %가 아직 남아 있다.

# %% [markdown]
# 한 점에서 무엇이 남는가? 고리의 점들을 잡고, 표집이 끝난 뒤 각 점이 자기가 나온 부분에 있는지를 묻는다. 바닥값: 순수한
# 잡음에서 간 표집은 어떤 부분에 그 부분의 가중치만큼 도착하므로, 점들의 $\sum_k w_k^2$은 우연히 일치한다. 아래에서 0은
# 그 바닥값이고, 1은 모든 점이 자기 부분에 있음이다.

# %% [markdown]
# ## 8. 그리고 되돌아가기: 역변환(inversion)
#
# 잡음 없는 길은 거꾸로 갈 수 있다. $\sigma' > \sigma$로 (03.4)를 쓰면 그림에서 그 잡음으로 올라간다.
# `ldm.inversion.invert`는 U-Net으로 그렇게 하고, 여기서는 혼합 분포로 한다. 올라가는 길은 신경망이 아는 가장 낮은 수준
# $\sigma(0) = 0.029$에서 시작한다. $\sigma = 0$에서 기울기 $(x - \hat x_0)/\sigma$는 $0/0$이다.
#
# 올라감과 내려감은 꼭 상쇄되지는 않는다. 한 구간 $[\sigma', \sigma]$에서 올라가는 길은 아래 끝의 기울기를, 내려가는
# 길은 위 끝의 기울기를 쓰므로, 구간마다 다음만큼 어긋난다.
# $$ \left|\,\frac{dx}{d\sigma}(\sigma) - \frac{dx}{d\sigma}(\sigma')\,\right|\,(\sigma - \sigma') \;\approx\;
# \left|\frac{d^2x}{d\sigma^2}\right| (\sigma-\sigma')^2 \tag{03.12} $$
# $S$단계이면 크기가 $1/S^2$인 이런 오차가 $S$개 있다. 합하면 $1/S$이다.

# %% [markdown]
# ### 연습 03.5: `rising_plan`
#
# 올라가는 길의 계획을 `lessons/exercises/e03_ddim.py`에 쓴다. DDIM 표집의 수준들(`ldm.spacing.levels`)을 아래에서부터
# 늘어놓는다. 표집이 0에서 끝나는 경우에는 그 자리에 `sigmas(schedule)[0]`을 두고, 그 위의 수준이 이미 그것이면 0을
# 빼기만 한다. `ldm.samplers`의 `Plan(levels, steps, eta, scale)`: 0을 덧대어 $T+1$개로 만든 수준들, 단계 수, 그리고
# 잡음은 없다. `pytest tests/test_03_ddim.py`. 기대하는 값:

# %% [markdown]
# 기울기의 범위 0.8에서 1.3은 무엇이든 재기 전에 정했다. 다른 절들의 고리를 먼저 쟀고, 이 단계 수들에서 고리는 범위에
# 들지 못한다. 주장에 쓴 파란 선의 더 넓은 부분들은 그 뒤에 골랐다. 까닭은 이렇다. $1/S$는 길을 휘게 하는 것에 견주어
# 작은 단계에 대한 법칙인데, 좁은 부분들이 갈라지는 곳에서 길은 몇 단계 안에 휜다. 두 부분 사이의 분수령 가까이에 있는
# 몇 안 되는 점이 평균 오차의 대부분을 만든다. 데이터가 이 고리보다 고우면, 역변환은 그 차수가 말하는 것보다 나쁘리라고
# 예상해야 한다.
#
# 안내(guidance)는 이를 더 나쁘게 한다. 안내가 있는 방정식은 더 많이 휜다(08강, 그리고 `ldm.editing.null_text`).

# %% [markdown]
# ## 9. 두 잡음 사이
#
# 출발점이 그림을 정한다면, 두 출발점 $a$와 $b$ 사이에는 무엇이 있는가? 직선 $(1-u)a + ub$ 위에서 분산은
# $(1-u)^2 + u^2$이고, 가운데에서는 절반이다. 신경망이 학습한 잡음 가운데 그런 것은 없다. 호(arc) 위에서는
# $$ \frac{\sin((1-u)\,\omega)}{\sin\omega}\,a + \frac{\sin(u\,\omega)}{\sin\omega}\,b, \qquad
# \cos\omega = \frac{a \cdot b}{|a|\,|b|} \tag{03.13} $$
# 길이가 유지된다(숫자가 많은 두 잡음은 거의 직각을 이룬다). 그래서 호 위의 어느 점이나 양 끝만큼 좋은 잡음이다. 논문의
# 5.3절이다.
#
# ### 연습 03.6: `slerp`
#
# 배열 $[N, \dots]$에 대해 (03.13)을 `lessons/exercises/e03_ddim.py`에 쓴다. $N$개는 저마다 자기 각을 가진다. 양 끝이
# 같으면 각이 없다. `pytest tests/test_03_ddim.py`. 기대하는 결과: 아래의 평평한 선.

# %% [markdown]
# ## 더 읽을거리
#
# - "Denoising Diffusion Implicit Models", Song et al. 2021, arXiv:2010.02502: 식 12와 16이 이 단계이고, 4.3절은
#   미분방정식, 5.3절은 호, 5.4절은 되돌아가는 길, 부록 D.2는 시간 단계이다.
# - "Denoising Diffusion Probabilistic Models", Ho et al. 2020, arXiv:2006.11239: 식 6과 7이 $\eta = 1$인 경우이다.
# - "Common Diffusion Noise Schedules and Sample Steps are Flawed", Lin et al. 2023, arXiv:2305.08891: 이 강의의 4절과
#   5절.
# - "Elucidating the Design Space of Diffusion-Based Generative Models", Karras et al. 2022, arXiv:2206.00364: 왜
#   $\sigma$가 생각하기 좋은 변수인가.
# - "SDEdit", Meng et al. 2022, arXiv:2108.01073: img2img. "Null-text Inversion", Mokady et al. 2023, arXiv:2211.09794:
#   안내가 있을 때 되돌아가는 길.
#
# ## 주장들
#
# 저마다 시드 셋으로 잰다. 범위는 위의 이론에서 나온다. 앞의 셋은 같음, 넷째는 1차 근사로 두 배(폭은 닫힌 식의 값 1.78 무렵을 알고 정했다), 다섯째는 $1/S$, 마지막
# 둘은 스케줄이다.
