# bash completion for kubectl-towline. Load it: source <(kubectl towline completion bash)
_kubectl_towline() {
    local cur words answer directive word
    cur="${COMP_WORDS[COMP_CWORD]}"
    words=("${COMP_WORDS[@]:1:COMP_CWORD-1}")
    answer="$(kubectl-towline __complete -- "${words[@]}" "$cur" 2>/dev/null)" || return
    directive="${answer##*:}"
    COMPREPLY=()
    while IFS=$'\t' read -r word _; do
        [[ $word == :* ]] || COMPREPLY+=("$word")
    done <<<"$answer"
    if [[ $directive == 0 ]]; then
        compopt -o default 2>/dev/null
    fi
}
complete -F _kubectl_towline kubectl-towline
