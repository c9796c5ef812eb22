extension Manifest {
  /// Number of frames of each level, highest resolution first; 1 where a level shows a picture.
  public var frameCounts: [Int] { video?.frames ?? levels.map { _ in 1 } }

  /// Width and height of a frame of each level, in pixels. The frames of a level fill its ``Level/side``.
  public var frameSides: [Int] {
    zip(levels, frameCounts).map { level, count in level.side / (squareRoot(of: count) ?? 1) }
  }

  /// What a run of the levels up to a side makes; nil: of all levels.
  package func makesClips(upTo side: Int?) -> Bool {
    guard let side else { return frameCounts[0] > 1 }
    return zip(levels, frameCounts).contains { $0.side == side && $1 > 1 }
  }

  /// Refuses a request for a clip where pictures are made, and the other way round.
  package func checkKind(of request: PictureRequest, isClip: Bool) throws {
    // That there is no such level is another refusal.
    let known = request.stopAt.map(levels.map(\.side).contains) ?? true
    guard known, makesClips(upTo: request.stopAt) != isClip else { return }
    throw MatryoshkaError.wrongKind(
      reason: isClip ? reasonAgainstClip(request.stopAt) : reasonAgainstPicture)
  }

  private func reasonAgainstClip(_ stopAt: Int?) -> String {
    guard video != nil, let stopAt else {
      return "this bundle makes pictures; ask for one with generate(_:previews:)"
    }
    return "the level of side \(stopAt) makes a picture; ask for it with generate(_:previews:), or leave out stopAt"
  }

  private var reasonAgainstPicture: String {
    let reason = "this bundle makes clips; ask for one with clip(_:previews:)"
    guard let key = zip(levels, frameCounts).first(where: { $1 == 1 })?.0.side else { return reason }
    return "\(reason), or set stopAt to \(key) for its key frame"
  }

  /// Refuses clips that do not fit the levels.
  func checkVideo() throws {
    guard let video else { return }
    func refusal(_ reason: String) -> MatryoshkaError { .invalidManifest(field: "video", reason: reason) }
    guard video.frames.count == levels.count else {
      throw refusal("has \(video.frames.count) numbers of frames for \(levels.count) levels")
    }
    for (level, count) in zip(levels, video.frames) {
      guard let grid = squareRoot(of: count), level.side % grid == 0 else {
        throw refusal("has \(count) frames at \(level.side) pixels, which do not fill a square")
      }
    }
    guard zip(video.frames, video.frames.dropFirst()).allSatisfy({ $0 >= $1 }) else {
      throw refusal("has more frames further in, got \(video.frames)")
    }
    guard video.keyFrame < video.frames[0] else {
      throw refusal("shows frame \(video.keyFrame) of \(video.frames[0])")
    }
  }
}
